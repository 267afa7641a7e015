"""What the caller gets, and what is stored, when the model, the persistence service or the caller goes away."""

import os
import signal
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tests.chats import events_of, live_events, new_turn, post_turn, post_turns, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.services import KEY, Service, free_port, wait_for

Settings = dict[str, Any]


class Failure(NamedTuple):
    """What the model does, and what the caller gets for it."""

    status: int
    says: str
    calls: int = 1
    begins: bool = False  # the provider begins to answer, so a stream has begun too


FAILURES = {
    "status 400": Failure(502, "OPENAI_MODEL"),
    "status 401": Failure(502, "OPENAI_API_KEY"),
    "status 403": Failure(502, "OPENAI_API_KEY"),
    "status 404": Failure(502, "OPENAI_MODEL"),
    "status 422": Failure(502, "OPENAI_MODEL"),
    "status 429": Failure(503, "rate limit"),
    "status 429 7": Failure(503, "rate limit"),
    "status 500": Failure(502, "failed", calls=3),
    "status 503": Failure(502, "failed", calls=3),
    "status 302": Failure(502, "OPENAI_MODEL"),
    "hang": Failure(504, "OPENAI_TIMEOUT", calls=3),
    "hang_midway": Failure(504, "OPENAI_TIMEOUT", begins=True),
    "break 0": Failure(502, "OPENAI_BASE_URL"),
    "break 3": Failure(502, "broke off", begins=True),
    "error_first": Failure(502, "broke off"),
    "error_midway": Failure(502, "broke off", begins=True),
    "unfinished": Failure(502, "broke off", begins=True),
    "finish content_filter": Failure(502, "filtered", begins=True),
    "finish tool_calls": Failure(502, "tool_calls", begins=True),
    "empty": Failure(502, "empty", begins=True),
    "garbage": Failure(502, "OPENAI_BASE_URL"),
    "html": Failure(502, "OPENAI_BASE_URL"),
    "flood": Failure(502, "1 MiB", begins=True),
}
each_failure = pytest.mark.parametrize("name", FAILURES)


class Outcome(NamedTuple):
    """What came of a failing turn, and of the same turn when the model was well again."""

    turn: dict[str, Any]
    response: requests.Response
    calls: int
    left: list[dict[str, Any]]
    repeat: requests.Response


@pytest.fixture(scope="module")
def outcomes(shared_chat: Service, model_server: FakeOpenAI, persistence: Service) -> list[Outcome]:
    """Plays every failure, whole and streamed, all at the same time; then sends everything again."""
    model_server.reset()
    turns = [
        new_turn(f"fault: {name} # {streamed}", stream=streamed) for streamed in (False, True) for name in FAILURES
    ]
    responses = post_turns([shared_chat] * len(turns), turns)
    calls = [len(model_server.asked(turn["content"])) for turn in turns]
    left = [stored(persistence, turn) for turn in turns]
    model_server.is_well = True
    repeats = post_turns([shared_chat] * len(turns), turns)
    return list(map(Outcome._make, zip(turns, responses, calls, left, repeats, strict=True)))


@pytest.fixture
def whole(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return dict(zip(FAILURES, outcomes, strict=False))


@pytest.fixture
def streamed(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return dict(zip(FAILURES, outcomes[len(FAILURES) :], strict=True))


@each_failure
def test_a_failure_has_its_status_and_says_what_to_do(whole: dict[str, Outcome], name: str) -> None:
    response = whole[name].response
    assert (response.status_code, response.json()["code"]) == (FAILURES[name].status, FAILURES[name].status)
    assert FAILURES[name].says in response.json()["message"]
    assert "secret details" not in response.text


@each_failure
def test_a_stream_tells_of_a_failure_in_the_status_or_in_an_event(streamed: dict[str, Outcome], name: str) -> None:
    response = streamed[name].response
    if FAILURES[name].begins:
        assert response.status_code == 200
        events = events_of(response.content.decode())
        assert [events[0][0], events[-1][0]] == ["message", "error"]
        assert "reply" not in dict(events)
        error = events[-1][1]
    else:
        error = response.json()
        assert response.status_code == FAILURES[name].status
    assert error["code"] == FAILURES[name].status
    assert FAILURES[name].says in error["message"]


@each_failure
def test_a_failure_leaves_the_question_and_nothing_else(
    whole: dict[str, Outcome], streamed: dict[str, Outcome], name: str
) -> None:
    for outcome in (whole[name], streamed[name]):
        assert [(message["role"], message["content"]) for message in outcome.left] == [
            ("human", outcome.turn["content"])
        ]


@each_failure
def test_the_model_is_asked_again_only_where_that_may_help(
    whole: dict[str, Outcome], streamed: dict[str, Outcome], name: str
) -> None:
    assert (whole[name].calls, streamed[name].calls) == (FAILURES[name].calls, FAILURES[name].calls)


@each_failure
def test_the_same_request_is_answered_when_the_model_is_well(
    whole: dict[str, Outcome], streamed: dict[str, Outcome], persistence: Service, name: str
) -> None:
    for outcome in (whole[name], streamed[name]):
        assert outcome.repeat.status_code == 200
        contents = [message["content"] for message in stored(persistence, outcome.turn)]
        assert contents == [outcome.turn["content"], f"reply to {outcome.turn['content']}"]


def test_a_rate_limit_tells_when_to_come_back(whole: dict[str, Outcome]) -> None:
    assert whole["status 429 7"].response.headers["Retry-After"] == "7"
    assert int(whole["status 429"].response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_flood_is_stopped_at_its_source(chat: Service, model: FakeOpenAI, streamed: bool) -> None:
    chat.post("/chat", json=new_turn("fault: flood", stream=streamed))
    assert model.flood_ended.wait(10)
    assert model.flooded < 9_000_000


def test_no_text_of_the_provider_or_the_caller_is_logged(chat: Service, whole: dict[str, Outcome]) -> None:
    for outcome in whole.values():
        chat.log(outcome.response.headers["X-Request-ID"])
    assert "secret details" not in chat.text()
    assert "fault:" not in chat.text()


@pytest.mark.parametrize("streamed", [False, True])
def test_odd_chunks_give_the_right_text(chat: Service, persistence: Service, streamed: bool) -> None:
    turn = new_turn("fault: odd", stream=streamed)
    response = chat.post("/chat", json=turn)
    assert stored(persistence, turn)[1]["content"] == "smile \U0001f600 nul \ufffd lone \ufffd caf\u00e9\u2028line"
    if streamed:
        deltas = [data["content"] for name, data in events_of(response.content.decode()) if name == "delta"]
        assert "".join(deltas) == stored(persistence, turn)[1]["content"]


def test_a_reply_cut_for_its_length_is_kept(chat: Service, persistence: Service) -> None:
    turn = new_turn("fault: finish length")
    assert chat.post("/chat", json=turn).status_code == 200
    assert stored(persistence, turn)[1]["content"] == "some text"


@pytest.mark.slow
def test_a_provider_that_is_not_there_is_a_502(folder: Path, chat_settings: Settings, persistence: Service) -> None:
    turn = new_turn("hello")
    own = {"OPENAI_BASE_URL": f"http://127.0.0.1:{free_port()}", "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as chat:
        response = chat.post("/chat", json=turn | {"stream": True})
    assert response.status_code == 502
    assert "OPENAI_BASE_URL" in response.json()["message"]
    assert len(stored(persistence, turn)) == 1


@pytest.mark.slow
def test_without_a_key_for_openai_nothing_is_stored(
    folder: Path, chat: Service, chat_settings: Settings, persistence: Service
) -> None:
    turn, answered = new_turn("hello"), new_turn("answered before")
    first = chat.post("/chat", json=answered)
    keyless = {"API_BASE_URL": chat_settings["API_BASE_URL"], "WEB_CONCURRENCY": 1}
    with running("chat", folder, **keyless) as other:
        response = other.post("/chat", json=turn)
        stopped = other.post("/chat", json=turn, headers={"x-api-key": "wrong"})
        repeat = other.post("/chat", json=answered)
    assert response.status_code == 503
    assert "OPENAI_API_KEY" in response.json()["message"]
    assert stored(persistence, turn) == []
    assert stopped.status_code == 401
    assert repeat.json() == first.json()


class Lost(NamedTuple):
    """A chat service, and the port at which it looks for the persistence service, where nothing is."""

    chat: Service
    port: int


@pytest.fixture(scope="module")
def lost(chat_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    port = free_port()
    own = {"API_BASE_URL": f"http://127.0.0.1:{port}", "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), wait=False, **(chat_settings | own)) as chat:
        wait_for(lambda: requests.get(f"{chat.url}/health", timeout=5).ok)
        yield Lost(chat, port)


@pytest.mark.slow
def test_a_persistence_service_that_is_not_there_is_a_503(lost: Lost, model: FakeOpenAI) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(lost.chat.get, f"/chat/{uuid.uuid4()}")
        turns = post_turns([lost.chat] * 2, [new_turn("hello"), new_turn("hello", stream=True)])
    assert time.monotonic() - began < 8
    assert lost.chat.get("/ready").status_code == 503
    for response in (*turns, reading.result()):
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
    assert model.requests == []


@pytest.mark.parametrize("answer", [b"200 OK", b"302 Found", b"404 Not Found"])
def test_a_stranger_in_place_of_the_persistence_service_is_a_502(lost: Lost, model: FakeOpenAI, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", lost.port)) as stranger, ThreadPoolExecutor() as pool:
        asked = pool.submit(post_turn, lost.chat, new_turn("hello"))
        with stranger.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi" % answer)
            response = asked.result()
    assert response.status_code == 502
    assert "API_BASE_URL" in response.json()["message"]
    assert model.requests == []


class Fragile(NamedTuple):
    """A chat service, and below it a persistence service that may be spoiled, on the database of all tests."""

    chat: Service
    persistence: Service
    settings: Settings

    def restarted(self) -> Service:
        return Service("persistence", self.persistence.output.parent, **self.settings)


@pytest.fixture
def fragile(folder: Path, chat_settings: Settings, database_url: str) -> Iterator[Fragile]:
    settings = {"DATABASE_URL": database_url, "API_KEY": KEY, "PORT": free_port(), "WEB_CONCURRENCY": 1}
    with running("persistence", folder, **settings) as persistence:
        own = {"API_BASE_URL": persistence.url, "OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
        with running("chat", folder, **(chat_settings | own)) as chat:
            yield Fragile(chat, persistence, settings)


@pytest.mark.slow
def test_a_reply_waits_for_the_persistence_service_to_come_back(
    fragile: Fragile, model: FakeOpenAI, persistence: Service
) -> None:
    turns = [new_turn("hello"), new_turn("hello stream", stream=True)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [fragile.chat] * 2, turns)
        wait_for(lambda: len(model.requests) == 2)
        fragile.persistence.stop()
        with socket.create_server(("127.0.0.1", fragile.persistence.port)) as gap:
            gap.settimeout(10)
            model.may_answer.set()
            for _ in range(3):
                gap.accept()[0].close()
        again = fragile.restarted()
        whole, streamed = responses.result()
    again.stop()
    assert whole.json()["reply"] == stored(persistence, turns[0])[1]
    assert events_of(streamed.content.decode())[-1] == ("reply", stored(persistence, turns[1])[1])


@pytest.mark.slow
def test_a_reply_that_can_not_be_stored_is_handed_over(
    fragile: Fragile, model: FakeOpenAI, persistence: Service
) -> None:
    turns = [new_turn("hello"), new_turn("hello stream", stream=True)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [fragile.chat] * 2, turns)
        wait_for(lambda: len(model.requests) == 2)
        fragile.persistence.stop()
        began = time.monotonic()
        model.may_answer.set()
        whole, streamed = responses.result()
    assert 8 < time.monotonic() - began < 14
    name, error = events_of(streamed.content.decode())[-1]
    assert (whole.status_code, name, error["code"]) == (503, "error", 503)
    assert whole.headers["Retry-After"]
    assert whole.json()["errors"]["reply"] == "reply to hello"
    assert error["errors"]["reply"] == "reply to hello stream"
    assert [len(stored(persistence, turn)) for turn in turns] == [1, 1]


@pytest.mark.slow
def test_a_persistence_service_that_hangs_is_not_waited_for_long(fragile: Fragile, model: FakeOpenAI) -> None:
    model.may_answer.clear()
    frozen = [fragile.persistence.process.pid, *fragile.persistence.workers()]
    with ThreadPoolExecutor() as pool:
        storing = pool.submit(post_turn, fragile.chat, new_turn("hello"))
        wait_for(lambda: model.requests)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            asking = pool.submit(post_turn, fragile.chat, new_turn("hello"))
            model.may_answer.set()
            assert storing.result().json()["errors"]["reply"] == "reply to hello"
            assert asking.result().status_code == 503
            assert time.monotonic() - began < 16
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def patient_chat(chat_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A chat service that waits for a model that is held back."""
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def test_a_body_without_an_end_is_not_waited_for(patient_chat: Service, model: FakeOpenAI) -> None:
    response = patient_chat.post("/chat", json=new_turn("fault: endless"), timeout=10)
    assert response.json()["reply"]["content"] == "all of it"


def hang_up(connection: socket.socket) -> None:
    """Reset the connection, as a caller does that is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def call(chat: Service, turn: dict[str, Any]) -> socket.socket:
    """Send a turn over a connection of one's own."""
    request = requests.Request("POST", f"{chat.url}/chat", json=turn, headers={"x-api-key": KEY}).prepare()
    assert isinstance(request.body, bytes)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection = socket.create_connection(("127.0.0.1", chat.port), timeout=10)
    connection.sendall(f"POST /chat HTTP/1.1\r\nHost: chat\r\n{head}\r\n".encode() + request.body)
    return connection


def receive_until(connection: socket.socket, end: bytes) -> None:
    received = b""
    while end not in received:
        data = connection.recv(65536)
        assert data, received
        received += data


def test_a_reply_is_stored_though_its_caller_hangs_up(
    patient_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    model.may_answer.clear()
    turn = new_turn("hello")
    connection = call(patient_chat, turn)
    wait_for(lambda: model.asked("hello"))
    hang_up(connection)
    model.may_answer.set()
    wait_for(lambda: len(stored(persistence, turn)) == 2)


def test_replies_are_stored_though_fifty_streams_are_hung_up(
    patient_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turns = [new_turn("fault: steps 3", stream=True) for _ in range(50)]
    connections = [call(patient_chat, turn) for turn in turns]
    for connection in connections:
        receive_until(connection, b"event: message")
    for connection in connections[:25]:
        hang_up(connection)
    for connection in connections[25:]:
        connection.close()
    model.steps.release(150)
    for turn in turns:
        wait_for(lambda turn=turn: len(stored(persistence, turn)) == 2)  # type: ignore[misc]
        assert stored(persistence, turn)[1]["content"] == "piece 0 piece 1 piece 2 "


@pytest.mark.slow
def test_a_stream_that_is_open_during_sigterm_is_finished(
    folder: Path, chat_settings: Settings, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: steps 3")
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as chat, stream(chat, turn) as response:
        events = live_events(response)
        model.steps.release()
        assert [next(events)[0], next(events)[0]] == ["message", "delta"]
        chat.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(chat))
        model.steps.release(2)
        assert [name for name, _ in events] == ["delta", "delta", "reply"]
        assert chat.process.wait(10) == 0
    assert len(stored(persistence, turn)) == 2


def refuses(chat: Service) -> bool:
    try:
        socket.create_connection(("127.0.0.1", chat.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture(scope="module")
def narrow_chat(chat_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A chat service with a place for one turn."""
    own = {"OPENAI_TIMEOUT": 30, "THREADS": 2, "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def test_a_turn_that_finds_no_place_is_to_come_back(narrow_chat: Service, model: FakeOpenAI) -> None:
    with stream(narrow_chat, new_turn("fault: steps 1")) as held:
        events = live_events(held)
        next(events)
        for streamed in (False, True):
            response = narrow_chat.post("/chat", json=new_turn("hello", stream=streamed))
            assert response.status_code == 503
            assert int(response.headers["Retry-After"]) > 0
        for path in ("/health", "/ready"):
            assert narrow_chat.get(path).status_code == 200
        model.steps.release()
        assert [name for name, _ in events] == ["delta", "reply"]
    assert model.asked("hello") == []


def test_a_long_list_needs_a_place_and_a_page_does_not(narrow_chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("fault: steps 1")
    with stream(narrow_chat, turn) as held:
        events = live_events(held)
        next(events)
        response = narrow_chat.get(f"/chat/{turn['chat_id']}")
        assert (response.status_code, "Retry-After" in response.headers) == (503, True)
        assert len(narrow_chat.get(f"/chat/{turn['chat_id']}", params={"limit": 5}).json()) == 1
        model.steps.release()
        assert [name for name, _ in events] == ["delta", "reply"]


@pytest.mark.parametrize(
    "fault", ["status 429", "error_first", "break 3", "empty", "garbage", "flood", "finish tool_calls"]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_failure_gives_its_place_back(narrow_chat: Service, model: FakeOpenAI, fault: str, streamed: bool) -> None:
    narrow_chat.post("/chat", json=new_turn(f"fault: {fault}", stream=streamed))
    assert wait_for(lambda: narrow_chat.post("/chat", json=new_turn("hello")).status_code == 200)


def test_a_refusal_gives_its_place_back(narrow_chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("hello")
    narrow_chat.post("/chat", json=turn)
    for options in ({"json": turn | {"content": "other"}}, {"json": turn, "headers": {"x-api-key": "wrong"}}):
        assert narrow_chat.post("/chat", **options).status_code in (401, 409)
    for path in (uuid.uuid4(), turn["chat_id"]):
        narrow_chat.get(f"/chat/{path}")
    assert wait_for(lambda: narrow_chat.post("/chat", json=new_turn("hello")).status_code == 200)
