import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from chat import history
from tests.chats import answer_of, events_of, live_events, new_turn, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.messages import assert_error, new_id, pages, store
from tests.services import OTHER_KEY, Service

whole_and_streamed = pytest.mark.parametrize("streamed", [False, True])


@pytest.fixture(scope="module")
def forgetful_chat(chat_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A chat service with every setting of the model's its own, and a short memory."""
    own = {
        "OPENAI_API_KEY": "sk-of-the-provider",
        "OPENAI_MODEL": "some-model",
        "OPENAI_OPTIONS": '{"reasoning_effort": "low"}',
        "SYSTEM_PROMPT": "Be brief.",
        "HISTORY_MESSAGES": 4,
        "HISTORY_CHARS": 40,
        "WEB_CONCURRENCY": 1,
    }
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def fill(persistence: Service, chat_id: str, contents: list[str]) -> list[str]:
    """Store messages, and return their ids."""
    roles = ("human", "ai")
    return [
        store(persistence, chat_id=chat_id, content=content, role=roles[number % 2])["message_id"]
        for number, content in enumerate(contents)
    ]


def said(model: FakeOpenAI) -> list[str]:
    """Return what the model was given last, its own instructions apart."""
    return [message["content"] for message in model.requests[-1]["messages"][1:]]


@pytest.mark.parametrize("path", ["/chat", "/chat/"])
def test_a_turn_stores_both_sides_under_the_ids_that_are_chosen(chat: Service, persistence: Service, path: str) -> None:
    turn = new_turn("hello")
    message, reply = answer_of(chat.post(path, json=turn))
    assert turn.items() <= message.items()
    assert [message["role"], reply["role"], reply["content"]] == ["human", "ai", "reply to hello"]
    assert [message, reply] == stored(persistence, turn)


def test_a_streamed_turn_tells_the_message_the_pieces_and_the_reply(chat: Service, persistence: Service) -> None:
    turn = new_turn("good morning")
    response = chat.post("/chat", json=turn | {"stream": True})
    assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
    events = events_of(response.content.decode())
    assert [name for name, _ in events] == ["message", "delta", "delta", "delta", "delta", "reply"]
    assert "".join(data["content"] for name, data in events if name == "delta") == "reply to good morning"
    assert [events[0][1], events[-1][1]] == stored(persistence, turn)


def test_the_id_of_a_new_chat_follows_from_the_message(chat: Service) -> None:
    message_id = new_id()
    message, _ = answer_of(chat.post("/chat", json={"content": "hello", "message_id": message_id.upper()}))
    assert (message["message_id"], message["chat_id"]) == (message_id, history.chat_id(message_id))


@pytest.mark.parametrize("text", ['\U0001f469\u200d\U0001f4bb \u2028 \ufeff \x7f \x01 \\ " </script>', " ", "\n\r\n"])
@whole_and_streamed
def test_any_text_goes_both_ways_unchanged(
    chat: Service, model: FakeOpenAI, persistence: Service, text: str, streamed: bool
) -> None:
    model.text = text
    turn = new_turn(text, stream=streamed)
    assert chat.post("/chat", json=turn).status_code == 200
    assert said(model) == [text]
    assert [message["content"] for message in stored(persistence, turn)] == [text, text]


def test_the_model_is_given_what_was_said_before_in_this_chat(chat: Service, model: FakeOpenAI) -> None:
    chat.post("/chat", json={"content": "elsewhere"})
    chat_id = new_id()
    for content in ("one", "two", "three"):
        chat.post("/chat", json={"content": content, "chat_id": chat_id})
    assert [(message["role"], message["content"]) for message in model.requests[-1]["messages"][1:]] == [
        ("user", "one"),
        ("assistant", "reply to one"),
        ("user", "two"),
        ("assistant", "reply to two"),
        ("user", "three"),
    ]


@pytest.mark.parametrize(
    ("earlier", "sent"),
    [
        (["1", "2", "3", "4", "5", "6"], ["3", "4", "5", "6"]),
        (["a" * 15, "b" * 15, "c" * 15, "d" * 15], ["c" * 15, "d" * 15]),
        (["a", "b" * 41, "c"], ["c"]),
        (["a", "b" * 41], []),
        (["\U0001f600" * 20, "\u00e9" * 20], ["\U0001f600" * 20, "\u00e9" * 20]),
    ],
)
def test_the_newest_whole_messages_that_fit_are_sent(
    forgetful_chat: Service, persistence: Service, model: FakeOpenAI, earlier: list[str], sent: list[str]
) -> None:
    turn = new_turn("now" * 100)  # the question is sent however long it is
    fill(persistence, turn["chat_id"], earlier)
    assert forgetful_chat.post("/chat", json=turn).status_code == 200
    assert said(model) == [*sent, turn["content"]]


def test_the_model_is_asked_as_the_settings_say(forgetful_chat: Service, model: FakeOpenAI) -> None:
    forgetful_chat.post("/chat", json={"content": "hello"})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert model.requests == [{"model": "some-model", "messages": messages, "stream": True, "reasoning_effort": "low"}]


@whole_and_streamed
def test_the_log_tells_what_a_turn_was(
    forgetful_chat: Service, persistence: Service, model: FakeOpenAI, streamed: bool
) -> None:
    usage = '{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3}}'
    turn = new_turn(f"fault: say hi, finish length, data {usage}", stream=streamed)
    fill(persistence, turn["chat_id"], ["a", "b" * 40, "c"])
    request_id = f"followed {new_id()}"
    response = forgetful_chat.post("/chat", json=turn, headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id
    line = forgetful_chat.log(request_id)
    expected = {"service": "chat", "method": "POST", "path": "/chat", "status": 200, "model": "some-model"}
    expected |= {"finish_reason": "length", "history_sent": 1, "prompt_tokens": 12, "completion_tokens": 3}
    assert expected.items() <= line.items()
    assert 0 < line["first_piece_ms"] <= line["duration_ms"]
    assert persistence.log(request_id)["service"] == "persistence"


def test_each_key_goes_only_where_it_belongs(forgetful_chat: Service, model: FakeOpenAI) -> None:
    response = forgetful_chat.post("/chat", json={"content": "hello"}, headers={"x-api-key": OTHER_KEY})
    assert response.status_code == 200  # a caller's key is forwarded
    assert model.keys == ["Bearer sk-of-the-provider"]
    forgetful_chat.log(response.headers["X-Request-ID"])
    assert not re.search(f"sk-of-the-provider|{OTHER_KEY}|hello", forgetful_chat.text())


def test_no_key_is_turned_away_before_anything_is_looked_at(chat: Service, model: FakeOpenAI) -> None:
    response = chat.post("/chat", data=b"no json", headers={"x-api-key": None})
    assert_error(response, 401)
    assert response.headers["WWW-Authenticate"] == "ApiKey"
    assert model.requests == []


@pytest.mark.parametrize("key", ["wrong", "k\u00e9y", "\u00a0"])
@whole_and_streamed
def test_a_wrong_key_reaches_neither_the_model_nor_a_chat(
    chat: Service, model: FakeOpenAI, key: str, streamed: bool
) -> None:
    chat_id = answer_of(chat.post("/chat", json={"content": "hello"}))[0]["chat_id"]
    headers = {"x-api-key": key.encode("latin-1")}
    response = chat.post("/chat", json={"content": "hello", "stream": streamed}, headers=headers)
    assert_error(response, 401)
    assert response.headers["WWW-Authenticate"] == "ApiKey"
    assert_error(chat.get(f"/chat/{chat_id}", headers=headers), 401)
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("content", ["", None, 1, "nul \0", "lone \ud800"]),
        ("chat_id", ["no-uuid", None, str(uuid.uuid1())]),
        ("message_id", [None, uuid.uuid4().hex]),
        ("stream", ["true", 1, None]),
        ("role", ["ai"]),
    ],
)
def test_a_wrong_field_is_named(chat: Service, model: FakeOpenAI, field: str, values: list[Any]) -> None:
    for value in values:
        assert_error(chat.post("/chat", json={"content": "x"} | {field: value}), 422, field)
    assert model.requests == []


def test_a_piece_arrives_before_the_next_one_is_sent(chat: Service, model: FakeOpenAI) -> None:
    delays = []
    with stream(chat, new_turn("fault: steps 21")) as response:
        events = live_events(response)
        assert next(events)[0] == "message"
        for number in range(21):
            sent = time.monotonic()
            model.steps.release()
            assert next(events) == ("delta", {"content": f"piece {number} "})
            delays.append(time.monotonic() - sent)
        assert next(events)[0] == "reply"
    assert sorted(delays)[10] < 0.03, delays


def test_the_connection_to_the_provider_is_kept_from_turn_to_turn(forgetful_chat: Service, model: FakeOpenAI) -> None:
    forgetful_chat.post("/chat", json={"content": "hello"})
    connections = model.connections
    for streamed in (False, True) * 5:
        assert forgetful_chat.post("/chat", json={"content": "hello", "stream": streamed}).status_code == 200
    assert model.connections == connections


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_chat_can_be_read(chat: Service, persistence: Service, slash: str) -> None:
    turn = new_turn("hello")
    answer = answer_of(chat.post("/chat", json=turn))
    response = chat.get(f"/chat/{turn['chat_id'].upper()}{slash}")
    assert response.json() == answer == stored(persistence, turn)
    assert response.headers["Content-Type"] == "application/json"
    assert "Link" not in response.headers


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_chat_can_be_read_page_by_page(chat: Service, persistence: Service, order: str) -> None:
    chat_id = new_id()
    ids = fill(persistence, chat_id, ["a", "b", "c", "d", "e"])
    read = list(pages(chat, f"/chat/{chat_id}", limit=2, order=order))
    assert [len(page) for page in read] == [2, 2, 1]
    assert [message["message_id"] for page in read for message in page] == (ids if order == "asc" else ids[::-1])


def test_reading_goes_on_after_a_message(chat: Service, persistence: Service) -> None:
    chat_id = new_id()
    ids = fill(persistence, chat_id, ["a", "b", "c"])
    for number, message_id in enumerate(ids):
        for query in ({}, {"limit": "5"}):
            response = chat.get(f"/chat/{chat_id}", params=query | {"after": message_id})
            assert [message["message_id"] for message in response.json()] == ids[number + 1 :]
    assert_error(chat.get(f"/chat/{chat_id}", params={"after": new_id()}), 422, "after")


@pytest.mark.parametrize("query", ["", "?limit=5", "?order=desc"])
def test_a_chat_with_no_messages_is_not_there(chat: Service, query: str) -> None:
    for chat_id in (uuid.uuid4(), "nothing", uuid.uuid1(), uuid.uuid4().hex):
        assert_error(chat.get(f"/chat/{chat_id}{query}"), 404)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=", "order=up", "after=x", "role=ai", "limit=1&limit=2"]
)
def test_a_wrong_parameter_is_named(chat: Service, query: str) -> None:
    assert_error(chat.get(f"/chat/{uuid.uuid4()}?{query}"), 422, query.partition("=")[0])


def test_a_long_chat_is_read_whole(chat: Service, persistence: Service) -> None:
    chat_id = new_id()
    contents = [f"{number}" * 500_000 for number in range(8)]
    fill(persistence, chat_id, contents)
    for query in ({}, {"limit": "8"}):
        read = chat.get(f"/chat/{chat_id}", params=query).json()
        assert [message["content"] for message in read] == contents
