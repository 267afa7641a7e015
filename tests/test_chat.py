"""A turn, whole and streamed: what is stored, what the model is given, what the caller gets; and a chat read back."""

import itertools
import re
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.chats import RunChat, answer_of, events_of, live_events, new_turn, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.messages import assert_error, new_id, pages, store
from tests.services import OTHER_KEY, Service

whole_and_streamed = pytest.mark.parametrize("streamed", [False, True])


@pytest.fixture(scope="module")
def forgetful_chat(run_chat: RunChat) -> Iterator[Service]:
    """A chat service with every setting of the model's its own, and a short memory."""
    own = {
        "OPENAI_API_KEY": "sk-of-the-provider",
        "OPENAI_MODEL": "some-model",
        "OPENAI_OPTIONS": '{"reasoning_effort": "low"}',
        "SYSTEM_PROMPT": "Be brief.",
        "HISTORY_MESSAGES": 4,
        "HISTORY_CHARS": 40,
    }
    with run_chat(**own) as service:
        yield service


def fill(persistence: Service, chat_id: str, contents: list[str]) -> list[str]:
    """Store messages, and return their ids."""
    turns = zip(itertools.cycle(("human", "ai")), contents)
    return [store(persistence, chat_id=chat_id, content=text, role=role)["message_id"] for role, text in turns]


def said(model: FakeOpenAI) -> list[str]:
    """Return what the model was given last, its own instructions apart."""
    return [message["content"] for message in model.requests[-1]["messages"][1:]]


@pytest.mark.parametrize("path", ["/chat", "/chat/"])
def test_a_turn_stores_both_sides_under_the_ids_that_are_chosen(chat: Service, path: str) -> None:
    turn = new_turn("hello")
    message, reply = answer_of(chat.post(path, json=turn))
    assert turn.items() <= message.items()
    assert [message["role"], reply["role"], reply["content"]] == ["human", "ai", "reply to hello"]
    assert [message, reply] == stored(chat, turn)


def test_a_streamed_turn_tells_the_message_the_pieces_and_the_reply(chat: Service) -> None:
    turn = new_turn("good morning")
    response = chat.post("/chat", json=turn | {"stream": True})
    assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
    events = events_of(response.content.decode())
    assert [name for name, _ in events] == ["message", "delta", "delta", "delta", "delta", "reply"]
    assert "".join(data["content"] for name, data in events if name == "delta") == "reply to good morning"
    assert [events[0][1], events[-1][1]] == stored(chat, turn)


def test_the_ids_of_a_new_chat_and_of_the_reply_follow_from_the_message(chat: Service) -> None:
    message_id = "b9b1f6f4-5f8e-4f0b-8f6b-0d7f5d1c2a3e"
    message, reply = answer_of(chat.post("/chat", json={"content": "hello", "message_id": message_id.upper()}))
    assert message["message_id"] == message_id
    assert message["chat_id"] == "3617c8a9-8a88-407b-9ffc-92aa45ff2063"
    assert reply["message_id"] == "a7d250dd-64f1-41f0-a845-a5af73f2073a"


@pytest.mark.parametrize("text", ['\U0001f469\u200d\U0001f4bb \u2028 \ufeff \x7f \x01 \\ " </script>', " ", "\n\r\n"])
@whole_and_streamed
def test_any_text_goes_both_ways_unchanged(chat: Service, model: FakeOpenAI, text: str, streamed: bool) -> None:
    model.text = text
    turn = new_turn(text, stream=streamed)
    assert chat.post("/chat", json=turn).status_code == 200
    assert said(model) == [text]
    assert [message["content"] for message in stored(chat, turn)] == [text, text]


def test_the_model_is_given_what_was_said_before_in_this_chat(chat: Service, model: FakeOpenAI) -> None:
    chat.post("/chat", json={"content": "elsewhere"})
    chat_id = new_id()
    for content in ("one", "two", "three"):
        chat.post("/chat", json={"content": content, "chat_id": chat_id})
    assert said(model) == ["one", "reply to one", "two", "reply to two", "three"]
    roles = [message["role"] for message in model.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


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


@pytest.mark.parametrize("key", ["wrong", "k\u00e9y", "\u00a0"])
@whole_and_streamed
def test_a_wrong_key_reaches_neither_the_model_nor_a_chat(
    chat: Service, model: FakeOpenAI, key: str, streamed: bool
) -> None:
    turn, headers = new_turn("hello", stream=streamed), {"x-api-key": key.encode("latin-1")}
    chat.post("/chat", json=turn)
    for response in (
        chat.post("/chat", json=turn, headers=headers),
        chat.get(f"/chat/{turn['chat_id']}", headers=headers),
    ):
        assert_error(response, 401)
        assert response.headers["WWW-Authenticate"] == "ApiKey"
    assert len(model.requests) == 1


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
    assert sorted(delays)[5] < 0.03, (
        delays
    )  # a piece that waits for an acknowledgement of the one before waits for 0.04 s


def test_the_connection_to_the_provider_is_kept_from_turn_to_turn(forgetful_chat: Service, model: FakeOpenAI) -> None:
    forgetful_chat.post("/chat", json={"content": "hello"})
    connections = model.connections
    for streamed in (False, True) * 5:
        assert forgetful_chat.post("/chat", json={"content": "hello", "stream": streamed}).status_code == 200
    assert model.connections == connections


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_chat_is_read_whole_and_page_by_page(chat: Service, persistence: Service, slash: str) -> None:
    chat_id = new_id()
    ids = fill(persistence, chat_id, [f"{number}" * 300_000 for number in range(5)])
    path = f"/chat/{chat_id.upper()}{slash}"
    whole = chat.get(path)
    assert whole.json() == stored(chat, {"chat_id": chat_id})
    assert (whole.headers["Content-Type"], "Link" in whole.headers) == ("application/json", False)
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        read = list(pages(chat, path, limit=2, order=order))
        assert [len(page) for page in read] == [2, 2, 1]
        assert [message["message_id"] for page in read for message in page] == expected
    for number, message_id in enumerate(ids):
        for query in ({}, {"limit": "5"}):
            following = chat.get(path, params=query | {"after": message_id}).json()
            assert [message["message_id"] for message in following] == ids[number + 1 :]
    assert_error(chat.get(path, params={"after": new_id()}), 422, "after")


@pytest.mark.parametrize("query", ["", "?limit=5", "?order=desc"])
def test_a_chat_with_no_messages_is_not_there(chat: Service, query: str) -> None:
    assert_error(chat.get(f"/chat/{uuid.uuid4()}{query}"), 404)
