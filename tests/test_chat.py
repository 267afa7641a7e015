import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from chat import history
from tests.chats import events_of, live_events, new_turn, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.services import OTHER_KEY, Service


@pytest.fixture(scope="module")
def forgetful_chat(chat_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A chat service with every setting of the model's its own, and a short memory."""
    own = {
        "OPENAI_API_KEY": "sk-of-the-provider",
        "OPENAI_MODEL": "some-model",
        "SYSTEM_PROMPT": "Be brief.",
        "HISTORY_MESSAGES": 4,
        "HISTORY_CHARS": 40,
    }
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def fill(persistence: Service, chat_id: str, contents: list[str]) -> list[str]:
    """Store messages, and give their ids."""
    roles = ("human", "ai")
    messages = [
        {"chat_id": chat_id, "content": content, "role": roles[number % 2]} for number, content in enumerate(contents)
    ]
    return [persistence.post("/messages/", json=message).json()["message_id"] for message in messages]


def said(model: FakeOpenAI) -> list[str]:
    """What the model was given last, its own instructions apart."""
    return [message["content"] for message in model.requests[-1]["messages"][1:]]


def test_a_turn_stores_both_sides(chat: Service, persistence: Service) -> None:
    response = chat.post("/chat", json={"content": "hello"})
    assert response.status_code == 200
    turn = response.json()
    assert (turn["message"]["content"], turn["message"]["role"]) == ("hello", "human")
    assert (turn["reply"]["content"], turn["reply"]["role"]) == ("reply to hello", "ai")
    assert stored(persistence, turn["reply"]) == [turn["message"], turn["reply"]]


def test_a_streamed_turn_tells_the_message_the_pieces_and_the_reply(chat: Service, persistence: Service) -> None:
    turn = new_turn("good morning")
    response = chat.post("/chat", json=turn | {"stream": True})
    assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
    events = events_of(response.content.decode())
    deltas = [data["content"] for name, data in events if name == "delta"]
    assert [name for name, _ in events] == ["message", "delta", "delta", "delta", "delta", "reply"]
    assert "".join(deltas) == "reply to good morning"
    assert [events[0][1], events[-1][1]] == stored(persistence, turn)


@pytest.mark.parametrize("path", ["/chat", "/chat/"])
def test_ids_may_be_chosen(chat: Service, path: str) -> None:
    turn = new_turn("hello")
    answer = chat.post(path, json=turn).json()
    assert answer["message"]["message_id"] == turn["message_id"]
    assert answer["message"]["chat_id"] == answer["reply"]["chat_id"] == turn["chat_id"]


def test_the_id_of_a_new_chat_follows_from_the_message(chat: Service) -> None:
    message_id = str(uuid.uuid4())
    answer = chat.post("/chat", json={"content": "hello", "message_id": message_id.upper()}).json()
    assert answer["message"]["message_id"] == message_id
    assert answer["message"]["chat_id"] == history.chat_id(message_id)


@pytest.mark.parametrize("text", ['\U0001f469\u200d\U0001f4bb \u2028 \ufeff \x7f \x01 \\ " </script>', " ", "\n\r\n"])
@pytest.mark.parametrize("streamed", [False, True])
def test_any_text_goes_both_ways_unchanged(
    chat: Service, model: FakeOpenAI, persistence: Service, text: str, streamed: bool
) -> None:
    model.text = text
    turn = new_turn(text, stream=streamed)
    assert chat.post("/chat", json=turn).status_code == 200
    assert said(model) == [text]
    assert [message["content"] for message in stored(persistence, turn)] == [text, text]


def test_the_model_is_given_what_was_said_before(chat: Service, model: FakeOpenAI) -> None:
    chat_id = str(uuid.uuid4())
    for content in ("one", "two", "three"):
        chat.post("/chat", json={"content": content, "chat_id": chat_id})
    said = [(message["role"], message["content"]) for message in model.requests[-1]["messages"][1:]]
    assert said == [
        ("user", "one"),
        ("assistant", "reply to one"),
        ("user", "two"),
        ("assistant", "reply to two"),
        ("user", "three"),
    ]


def test_the_model_is_given_nothing_of_other_chats(chat: Service, model: FakeOpenAI) -> None:
    for content in ("one", "two"):
        chat.post("/chat", json={"content": content})
    assert said(model) == ["two"]


@pytest.mark.parametrize(
    ("earlier", "sent"),
    [
        (["1", "2", "3", "4", "5", "6"], ["3", "4", "5", "6"]),
        (["a" * 15, "b" * 15, "c" * 15, "d" * 15], ["c" * 15, "d" * 15]),
        (["a", "b" * 41, "c"], ["c"]),
        (["a", "b" * 40], ["b" * 40]),
        (["a", "b" * 41], []),
        (["\U0001f600" * 20, "\u00e9" * 20], ["\U0001f600" * 20, "\u00e9" * 20]),
    ],
)
def test_the_newest_whole_messages_that_fit_are_sent(
    forgetful_chat: Service, persistence: Service, model: FakeOpenAI, earlier: list[str], sent: list[str]
) -> None:
    turn = new_turn("now")
    fill(persistence, turn["chat_id"], earlier)
    assert forgetful_chat.post("/chat", json=turn).status_code == 200
    assert said(model) == [*sent, "now"]


def test_the_question_is_sent_however_long_it_is(forgetful_chat: Service, model: FakeOpenAI) -> None:
    assert forgetful_chat.post("/chat", json={"content": "x" * 1000}).status_code == 200
    assert said(model) == ["x" * 1000]


def test_the_log_tells_how_much_of_the_history_was_sent(forgetful_chat: Service, persistence: Service) -> None:
    turn = new_turn("now")
    fill(persistence, turn["chat_id"], ["a", "b" * 40, "c"])
    request_id = forgetful_chat.post("/chat", json=turn).headers["X-Request-ID"]
    line = forgetful_chat.log(request_id)
    assert (line["history_sent"], line["history_left_out"]) == (1, 2)


def test_the_model_is_asked_as_the_settings_say(forgetful_chat: Service, model: FakeOpenAI) -> None:
    forgetful_chat.post("/chat", json={"content": "hello"})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert model.requests == [{"model": "some-model", "messages": messages, "stream": True}]


def test_each_key_goes_only_where_it_belongs(forgetful_chat: Service, model: FakeOpenAI) -> None:
    response = forgetful_chat.post("/chat", json={"content": "hello"}, headers={"x-api-key": OTHER_KEY})
    assert model.keys == ["Bearer sk-of-the-provider"]
    forgetful_chat.log(response.headers["X-Request-ID"])
    assert not re.search(
        f"sk-of-the-provider|{OTHER_KEY}|hello", forgetful_chat.text() + response.text.partition("{")[0]
    )


def test_a_callers_key_is_forwarded(chat: Service, persistence: Service) -> None:
    turn = new_turn("hello")
    assert chat.post("/chat", json=turn, headers={"x-api-key": OTHER_KEY}).status_code == 200
    assert len(stored(persistence, turn)) == 2


@pytest.mark.parametrize("path", ["/chat", "/chat/"])
def test_no_key_is_turned_away_before_anything_is_looked_at(chat: Service, model: FakeOpenAI, path: str) -> None:
    response = chat.post(path, data=b"no json", headers={"x-api-key": None})
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "ApiKey")
    assert model.requests == []


@pytest.mark.parametrize("key", ["wrong", "k\u00e9y", "\u00a0"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_wrong_key_never_reaches_the_model(chat: Service, model: FakeOpenAI, key: str, streamed: bool) -> None:
    headers = {"x-api-key": key.encode("latin-1")}
    response = chat.post("/chat", json={"content": "hello", "stream": streamed}, headers=headers)
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "ApiKey")
    assert response.json()["code"] == 401
    assert model.requests == []


def test_a_wrong_key_reads_no_chat(chat: Service) -> None:
    answer = chat.post("/chat", json={"content": "hello"}).json()
    for chat_id in (answer["message"]["chat_id"], str(uuid.uuid4())):
        assert chat.get(f"/chat/{chat_id}", headers={"x-api-key": "wrong"}).status_code == 401


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_is_followed_through_both_logs(chat: Service, persistence: Service, streamed: bool) -> None:
    request_id = f"followed {uuid.uuid4()}"
    body = {"content": "hello", "stream": streamed}
    response = chat.post("/chat", json=body, headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id
    line = chat.log(request_id)
    assert (line["service"], line["method"], line["path"], line["status"]) == ("chat", "POST", "/chat", 200)
    assert persistence.log(request_id)["service"] == "persistence"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"content": ""},
        {"content": None},
        {"content": 1},
        {"content": "nul \0"},
        {"content": "lone \ud800"},
        {"content": "x", "chat_id": "no-uuid"},
        {"content": "x", "chat_id": None},
        {"content": "x", "chat_id": str(uuid.uuid1())},
        {"content": "x", "message_id": uuid.uuid4().hex},
        {"content": "x", "stream": "true"},
        {"content": "x", "stream": 1},
        {"content": "x", "stream": None},
        {"content": "x", "temperature": 1},
        {"content": "x", "role": "ai"},
    ],
)
def test_a_wrong_field_is_named(chat: Service, model: FakeOpenAI, wrong: dict[str, Any]) -> None:
    response = chat.post("/chat", json=wrong)
    assert response.status_code == 422
    assert list(response.json()["errors"]) == [next((name for name in wrong if name != "content"), "content")]
    assert model.requests == []


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"", "headers": {"Content-Type": "application/json"}}, 400),
        ({"data": b"content=x", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415),
        ({"json": {"content": "x" * 1024 * 1024}}, 413),
        ({"json": ["content"]}, 422),
        ({"json": {"content": "x"}, "params": {"stream": "true"}}, 422),
    ],
)
def test_a_wrong_body_has_its_own_status(chat: Service, options: dict[str, Any], status: int) -> None:
    response = chat.post("/chat", **options)
    assert (response.status_code, response.json()["code"]) == (status, status)


def test_a_wrong_method_tells_the_right_ones(chat: Service) -> None:
    response = chat.get("/chat")
    assert response.status_code == 405
    assert set(response.headers["Allow"].replace(" ", "").split(",")) >= {"POST"}


def test_a_piece_arrives_before_the_next_one_is_sent(chat: Service, model: FakeOpenAI) -> None:
    with stream(chat, new_turn("fault: steps 5")) as response:
        events = live_events(response)
        assert next(events)[0] == "message"
        for number in range(5):
            model.steps.release()
            assert next(events) == ("delta", {"content": f"piece {number} "})
        assert next(events)[0] == "reply"


def test_pieces_come_as_fast_as_the_model_sends_them(chat: Service, model: FakeOpenAI) -> None:
    with stream(chat, new_turn("fault: steps 21")) as response:
        events = live_events(response)
        next(events)
        delays = []
        for _ in range(21):
            sent = time.monotonic()
            model.steps.release()
            next(events)
            delays.append(time.monotonic() - sent)
    assert sorted(delays)[10] < 0.02, delays


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_chat_can_be_read(chat: Service, persistence: Service, slash: str) -> None:
    turn = new_turn("hello")
    answer = chat.post("/chat", json=turn).json()
    response = chat.get(f"/chat/{turn['chat_id'].upper()}{slash}")
    assert response.json() == [answer["message"], answer["reply"]] == stored(persistence, turn)
    assert response.headers["Content-Type"] == "application/json"
    assert "Link" not in response.headers


def test_a_chat_can_be_read_in_either_order(chat: Service, persistence: Service) -> None:
    chat_id = str(uuid.uuid4())
    ids = fill(persistence, chat_id, ["a", "b", "c"])
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        read = chat.get(f"/chat/{chat_id}", params={"order": order}).json()
        assert [message["message_id"] for message in read] == expected


@pytest.mark.parametrize("query", [{}, {"order": "desc"}])
def test_pages_link_to_the_next_until_the_end(chat: Service, persistence: Service, query: dict[str, str]) -> None:
    chat_id = str(uuid.uuid4())
    ids = fill(persistence, chat_id, ["a", "b", "c", "d", "e"])
    path, read, pages = f"/chat/{chat_id}?limit=2" + "".join(f"&{k}={v}" for k, v in query.items()), [], 0
    while path:
        assert path.startswith(f"/chat/{chat_id}?")
        response = chat.get(path)
        read += [message["message_id"] for message in response.json()]
        path = response.links.get("next", {}).get("url", "")
        pages += 1
    assert (read, pages) == (ids[::-1] if query else ids, 3)


def test_reading_goes_on_after_a_message(chat: Service, persistence: Service) -> None:
    chat_id = str(uuid.uuid4())
    ids = fill(persistence, chat_id, ["a", "b", "c"])
    read = chat.get(f"/chat/{chat_id}", params={"after": ids[0]}).json()
    assert [message["message_id"] for message in read] == ids[1:]


@pytest.mark.parametrize("query", [{}, {"limit": "1"}])
def test_after_the_last_message_there_is_nothing_yet(
    chat: Service, persistence: Service, query: dict[str, str]
) -> None:
    chat_id = str(uuid.uuid4())
    ids = fill(persistence, chat_id, ["a"])
    response = chat.get(f"/chat/{chat_id}", params=query | {"after": ids[0]})
    assert (response.status_code, response.json()) == (200, [])


@pytest.mark.parametrize("query", ["", "?limit=5", "?order=desc"])
def test_a_chat_with_no_messages_is_not_there(chat: Service, query: str) -> None:
    response = chat.get(f"/chat/{uuid.uuid4()}{query}")
    assert (response.status_code, response.json()["code"]) == (404, 404)


@pytest.mark.parametrize("chat_id", ["nothing", str(uuid.uuid1()), uuid.uuid4().hex])
def test_what_is_no_chats_id_is_not_there(chat: Service, chat_id: str) -> None:
    assert chat.get(f"/chat/{chat_id}").status_code == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=", "order=up", "after=x", "role=ai", "limit=1&limit=2", "x"],
)
def test_a_wrong_parameter_is_named(chat: Service, query: str) -> None:
    response = chat.get(f"/chat/{uuid.uuid4()}?{query}")
    assert response.status_code == 422
    assert query.partition("=")[0] in response.json()["errors"]


def test_an_unknown_message_can_not_be_read_on_from(chat: Service, persistence: Service) -> None:
    chat_id = str(uuid.uuid4())
    fill(persistence, chat_id, ["a"])
    response = chat.get(f"/chat/{chat_id}", params={"after": str(uuid.uuid4())})
    assert (response.status_code, list(response.json()["errors"])) == (422, ["after"])


def test_a_long_chat_is_read_whole(chat: Service, persistence: Service) -> None:
    chat_id = str(uuid.uuid4())
    contents = [f"{number}" * 500_000 for number in range(8)]
    fill(persistence, chat_id, contents)
    for query in ({}, {"limit": "8"}):
        read = chat.get(f"/chat/{chat_id}", params=query).json()
        assert [message["content"] for message in read] == contents
