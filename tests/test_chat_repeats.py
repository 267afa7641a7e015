"""Exactly once: whoever sends a request again gets the one reply, and leaves nothing twice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chat.history import reply_id
from tests.chats import answer_of, events_of, new_turn, post_turn, running, stored
from tests.fake_openai import FakeOpenAI
from tests.messages import assert_error, new_id
from tests.proxy import Proxy
from tests.services import Service, wait_for


@pytest.mark.parametrize("with_chat_id", [True, False])
def test_a_repeat_costs_no_call_and_changes_nothing(
    chat: Service, model: FakeOpenAI, persistence: Service, with_chat_id: bool
) -> None:
    turn = new_turn("fault: count")
    if not with_chat_id:
        del turn["chat_id"]  # it follows from the message's
    first, second = (answer_of(chat.post("/chat", json=turn)) for _ in range(2))
    assert first == second == stored(persistence, first[0])
    assert len(model.requests) == 1


def test_a_streamed_repeat_has_one_delta_and_the_reply(chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("hello")
    first = chat.post("/chat", json=turn).json()
    repeat = chat.post("/chat", json=turn | {"stream": True})
    assert events_of(repeat.content.decode()) == [
        ("message", first["message"]),
        ("delta", {"content": "reply to hello"}),
        ("reply", first["reply"]),
    ]
    assert len(model.requests) == 1


@pytest.mark.parametrize("change", [{"content": "other"}, {"chat_id": new_id()}])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_taken_id_is_a_conflict(
    chat: Service, model: FakeOpenAI, persistence: Service, change: dict[str, str], streamed: bool
) -> None:
    turn = new_turn("hello")
    chat.post("/chat", json=turn)
    assert_error(chat.post("/chat", json=turn | change | {"stream": streamed}), 409)
    assert len(model.requests) == 1
    assert len(stored(persistence, turn)) == 2


def test_a_repeat_gives_the_model_what_came_before_it(chat: Service, model: FakeOpenAI) -> None:
    first = new_turn("first")
    chat.post("/chat", json=first)
    failed = new_turn("fault: status 400", chat_id=first["chat_id"])
    assert chat.post("/chat", json=failed).status_code == 502
    chat.post("/chat", json=new_turn("later", chat_id=first["chat_id"]))
    model.is_well = True
    chat.post("/chat", json=failed)
    said = [message["content"] for message in model.requests[-1]["messages"][1:]]
    assert said == ["first", "reply to first", "fault: status 400"]


def test_a_reply_that_was_deleted_is_made_again_under_its_id(
    chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: count")
    question, reply = answer_of(chat.post("/chat", json=turn))
    persistence.request("DELETE", f"/messages/{reply['message_id']}")
    again, second = answer_of(chat.post("/chat", json=turn))
    assert (again, second["message_id"]) == (question, reply["message_id"])
    assert second["content"] == "reply number 2"


def test_a_repeat_that_overtakes_the_first_makes_the_one_call(
    persistence: Service, chat_settings: dict[str, Any], model: FakeOpenAI, tmp_path: Path
) -> None:
    turn = new_turn("fault: count")
    proxy = Proxy(("127.0.0.1", persistence.port))
    settings = chat_settings | {"API_BASE_URL": f"http://127.0.0.1:{proxy.port}", "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path, **settings) as chat, ThreadPoolExecutor() as pool:
        held = proxy.may_answer = threading.Event()
        first = pool.submit(post_turn, chat, turn)
        wait_for(lambda: stored(persistence, turn))
        proxy.may_answer = threading.Event()
        proxy.may_answer.set()
        repeat = pool.submit(post_turn, chat, turn)
        wait_for(lambda: f"/messages/{reply_id(turn['message_id'])}" in persistence.text())
        held.set()
        assert answer_of(repeat.result()) == answer_of(first.result()) == stored(persistence, turn)
    proxy.close()
    assert len(model.requests) == 1
