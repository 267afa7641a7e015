"""Exactly once: whoever sends a request again gets the one reply, and leaves nothing twice."""

import os
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.chats import events_of, live_events, new_turn, post_turn, post_turns, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.services import Service, wait_for


@pytest.fixture(scope="module")
def other_chat(chat_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A second instance of the chat service, over the same persistence service and model."""
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def reply_of(response: requests.Response) -> dict[str, Any]:
    """Give the reply of a turn, whole or streamed."""
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"].startswith("text/event-stream"):
        reply: dict[str, Any] = dict(events_of(response.content.decode()))["reply"]
    else:
        reply = response.json()["reply"]
    return reply


def test_a_repeat_costs_no_call_and_changes_nothing(chat: Service, model: FakeOpenAI, persistence: Service) -> None:
    turn = new_turn("fault: count")
    first, second = chat.post("/chat", json=turn), chat.post("/chat", json=turn)
    assert second.json() == first.json()
    assert len(model.requests) == 1
    assert stored(persistence, turn) == list(first.json().values())


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


def test_a_repeat_finds_the_chat_that_it_began(chat: Service, persistence: Service) -> None:
    turn = {"content": "hello", "message_id": str(uuid.uuid4())}
    first, second = chat.post("/chat", json=turn), chat.post("/chat", json=turn)
    assert second.json() == first.json()
    assert len(stored(persistence, first.json()["reply"])) == 2


@pytest.mark.parametrize("change", [{"content": "other"}, {"chat_id": str(uuid.uuid4())}])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_taken_id_is_a_conflict(
    chat: Service, model: FakeOpenAI, persistence: Service, change: dict[str, str], streamed: bool
) -> None:
    turn = new_turn("hello")
    chat.post("/chat", json=turn)
    response = chat.post("/chat", json=turn | change | {"stream": streamed})
    assert (response.status_code, response.json()["code"]) == (409, 409)
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


def test_twenty_at_the_same_time_get_one_reply(
    chat: Service, other_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: count")
    turns = [turn | {"stream": number % 4 < 2} for number in range(20)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [chat, other_chat] * 10, turns)
        wait_for(lambda: len(model.requests) >= 10)
        model.may_answer.set()
        replies = list(map(reply_of, responses.result()))
    question, reply = stored(persistence, turn)
    assert (question["role"], reply["role"]) == ("human", "ai")
    assert replies == [reply] * 20


def test_a_repeat_while_the_first_is_at_work_gets_its_reply(
    chat: Service, other_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: steps 1")
    with stream(other_chat, turn) as first:
        model.is_well = True
        second = chat.post("/chat", json=turn).json()["reply"]
        model.steps.release()
        events = list(live_events(first))
    assert second["content"] == "reply to fault: steps 1"
    assert events[-1] == ("reply", second)
    assert stored(persistence, turn)[1:] == [second]


def kill(chat: Service) -> None:
    """Kill all of its processes, as a machine does that loses its power."""
    for pid in (chat.process.pid, *chat.workers()):
        os.kill(pid, signal.SIGKILL)
    chat.process.wait(10)


def test_a_request_is_completed_elsewhere_when_its_process_is_killed(
    chat: Service, chat_settings: dict[str, Any], model: FakeOpenAI, persistence: Service, folder: Path
) -> None:
    waiting, streaming = new_turn("hello"), new_turn("fault: steps 3")
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as doomed, ThreadPoolExecutor() as pool:
        model.may_answer.clear()
        lost = pool.submit(post_turn, doomed, waiting)
        with stream(doomed, streaming) as response:
            model.steps.release()
            events = live_events(response)
            assert [next(events)[0], next(events)[0]] == ["message", "delta"]
            wait_for(lambda: model.asked("hello"))
            kill(doomed)
            with pytest.raises(requests.RequestException):
                list(events)
        assert isinstance(lost.exception(), requests.RequestException)
    assert [len(stored(persistence, turn)) for turn in (waiting, streaming)] == [1, 1]
    model.may_answer.set()
    model.is_well = True
    for turn in (waiting, streaming):
        answer = chat.post("/chat", json=turn).json()
        assert stored(persistence, turn) == [answer["message"], answer["reply"]]


def test_a_reply_that_was_deleted_is_made_again_under_its_id(
    chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: count")
    first = chat.post("/chat", json=turn).json()
    persistence.request("DELETE", f"/messages/{first['reply']['message_id']}")
    second = chat.post("/chat", json=turn).json()
    assert second["message"] == first["message"]
    assert second["reply"]["message_id"] == first["reply"]["message_id"]
    assert second["reply"]["content"] == "reply number 2"
