"""What the caller gets, and what is stored, when the model, the persistence service or the caller goes away."""

import contextlib
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tests.chats import answer_of, error_of, live_events, new_turn, post_turn, post_turns, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.messages import assert_error
from tests.services import KEY, Service, free_port, wait_for

Settings = dict[str, Any]
whole_and_streamed = pytest.mark.parametrize("streamed", [False, True])


class Failure(NamedTuple):
    """What the caller gets for what the model does."""

    status: int
    says: str
    calls: int = 1
    begins: bool = False  # the provider begins to answer, so a stream has begun too


FAILURES = {
    "status 302": Failure(502, "OPENAI_MODEL"),
    "status 400": Failure(502, "OPENAI_OPTIONS"),
    "status 401": Failure(502, "OPENAI_API_KEY"),
    "status 403": Failure(502, "OPENAI_API_KEY"),
    "status 404": Failure(502, "OPENAI_MODEL"),
    "status 408": Failure(502, "failed", calls=3),
    "status 409": Failure(502, "failed", calls=3),
    "status 429": Failure(503, "rate limit"),
    "status 429 7": Failure(503, "rate limit"),
    "status 500": Failure(502, "failed", calls=3),
    "wait": Failure(504, "OPENAI_TIMEOUT"),
    "head, wait": Failure(504, "OPENAI_TIMEOUT"),
    "comments 5": Failure(504, "OPENAI_TIMEOUT"),
    "role, wait": Failure(504, "OPENAI_TIMEOUT", begins=True),
    "say begun, comments 5": Failure(504, "OPENAI_TIMEOUT", begins=True),
    "break": Failure(502, "OPENAI_BASE_URL"),
    "head, break": Failure(502, "OPENAI_BASE_URL"),
    "say half, break": Failure(502, "broke off", begins=True),
    'data {"error":{"message":"secret details"}}': Failure(502, "broke off"),
    'say half, data {"error":{"message":"secret details"}}': Failure(502, "broke off", begins=True),
    "say half": Failure(502, "broke off", begins=True),
    "say half, finish content_filter": Failure(502, "filtered", begins=True),
    "say half, finish tool_calls": Failure(502, "tool_calls", begins=True),
    "role, finish stop": Failure(502, "empty", begins=True),
    "data garbage": Failure(502, "OPENAI_BASE_URL"),
    "json": Failure(502, "OPENAI_BASE_URL"),
    "flood": Failure(502, "1 MiB", begins=True),
}
WAYS = ("whole", "streamed")
each_failure = pytest.mark.parametrize("name", FAILURES)


class Outcome(NamedTuple):
    """What came of a failing turn, and of the same turn when the model was well again."""

    turn: dict[str, Any]
    response: requests.Response
    calls: int
    left: list[dict[str, Any]]
    repeat: requests.Response


@pytest.fixture(scope="module")
def outcomes(shared_chat: Service, model_server: FakeOpenAI, persistence: Service) -> dict[str, list[Outcome]]:
    """Plays every failure, whole and streamed, all at the same time; then sends everything again."""
    model_server.reset()
    turns = [new_turn(f"fault: {name} # {way}", stream=way == "streamed") for name in FAILURES for way in WAYS]
    chats = [shared_chat] * len(turns)
    responses = post_turns(chats, turns)
    calls = [len(model_server.asked(turn["content"])) for turn in turns]
    left = [stored(persistence, turn) for turn in turns]
    model_server.is_well = True
    played = list(map(Outcome, turns, responses, calls, left, post_turns(chats, turns)))
    return {name: played[2 * number : 2 * number + 2] for number, name in enumerate(FAILURES)}


@each_failure
def test_a_failure_says_what_to_do_and_leaves_the_question(outcomes: dict[str, list[Outcome]], name: str) -> None:
    expected = FAILURES[name]
    for outcome, begins in zip(outcomes[name], (False, expected.begins), strict=True):
        assert outcome.response.status_code == (200 if begins else expected.status)
        error = error_of(outcome.response)
        assert error["code"] == expected.status
        assert expected.says in error["message"]
        assert "secret details" not in error["message"]
        assert [message["content"] for message in outcome.left] == [outcome.turn["content"]]
        assert outcome.calls == expected.calls


@each_failure
def test_the_same_request_is_answered_when_the_model_is_well(
    outcomes: dict[str, list[Outcome]], persistence: Service, name: str
) -> None:
    for outcome in outcomes[name]:
        answer = answer_of(outcome.repeat)
        assert answer[1]["content"] == f"reply to {outcome.turn['content']}"
        assert answer == stored(persistence, outcome.turn)


def test_a_rate_limit_tells_when_to_come_back(outcomes: dict[str, list[Outcome]]) -> None:
    for outcome in outcomes["status 429"]:
        assert int(outcome.response.headers["Retry-After"]) > 0
    for outcome in outcomes["status 429 7"]:
        assert outcome.response.headers["Retry-After"] == "7"


def test_no_text_of_the_provider_or_the_caller_is_logged(chat: Service, outcomes: dict[str, list[Outcome]]) -> None:
    for pair in outcomes.values():
        for outcome in pair:
            chat.log(outcome.response.headers["X-Request-ID"])
    assert "secret details" not in chat.text()
    assert "fault:" not in chat.text()


@whole_and_streamed
def test_a_flood_is_stopped_at_its_source(chat: Service, model: FakeOpenAI, streamed: bool) -> None:
    chat.post("/chat", json=new_turn("fault: flood", stream=streamed))
    assert model.flood_ended.wait(10)
    assert model.flooded < 9_000_000


def test_odd_chunks_give_the_right_text(chat: Service, persistence: Service) -> None:
    turn = new_turn("fault: odd")
    with stream(chat, turn) as response:
        preview = "".join(data["content"] for name, data in live_events(response) if name == "delta")
    text = "smile \U0001f600 nul \ufffd lone \ufffd caf\u00e9\u2028line"
    assert stored(persistence, turn)[1]["content"] == text
    assert preview.replace("\ufffd\ufffd", "\U0001f600") == text  # each half of the emoji was a piece of its own


@pytest.mark.parametrize("end", ["finish length", "finish stop, data [DONE], wait"])
def test_a_reply_is_whole_when_the_provider_says_so(chat: Service, persistence: Service, end: str) -> None:
    turn = new_turn(f"fault: say all, {end}")
    assert answer_of(chat.post("/chat", json=turn)) == stored(persistence, turn)
    assert stored(persistence, turn)[1]["content"] == "all"


@pytest.mark.slow
def test_a_provider_that_is_not_there_is_a_502_unless_it_comes_back(
    folder: Path, chat_settings: Settings, persistence: Service
) -> None:
    port, turn = free_port(), new_turn("hello", stream=True)
    own = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as chat, ThreadPoolExecutor() as pool:
        response = chat.post("/chat", json=turn)
        assert_error(response, 502)
        assert "OPENAI_BASE_URL" in response.json()["message"]
        assert len(stored(persistence, turn)) == 1
        again = pool.submit(post_turn, chat, turn)
        wait_for(lambda: chat.text().count("asked again") > 2)
        model = FakeOpenAI(("127.0.0.1", port))
        assert answer_of(again.result()) == stored(persistence, turn)
        model.stop()


@pytest.mark.slow
def test_without_a_key_for_openai_nothing_is_stored(
    folder: Path, chat: Service, chat_settings: Settings, persistence: Service
) -> None:
    turn, answered = new_turn("hello"), new_turn("answered before")
    first = chat.post("/chat", json=answered)
    with running("chat", folder, API_BASE_URL=chat_settings["API_BASE_URL"], WEB_CONCURRENCY=1) as other:
        response = other.post("/chat", json=turn)
        stopped = other.post("/chat", json=turn, headers={"x-api-key": "wrong"})
        repeat = other.post("/chat", json=answered)
    assert_error(response, 503)
    assert "OPENAI_API_KEY" in response.json()["message"]
    assert stored(persistence, turn) == []
    assert_error(stopped, 401)
    assert repeat.json() == first.json()


@pytest.fixture(scope="module")
def lost(chat_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, int]]:
    """A chat service, and the port at which it looks for the persistence service, where nothing is."""
    port = free_port()
    own = {"API_BASE_URL": f"http://127.0.0.1:{port}", "WEB_CONCURRENCY": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), wait=False, **(chat_settings | own)) as chat:
        wait_for(lambda: requests.get(f"{chat.url}/health", timeout=5).ok)
        yield chat, port


@pytest.mark.slow
def test_a_persistence_service_that_is_not_there_is_a_503(lost: tuple[Service, int], model: FakeOpenAI) -> None:
    chat, _port = lost
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(chat.get, f"/chat/{uuid.uuid4()}")
        turns = post_turns([chat] * 2, [new_turn("hello"), new_turn("hello", stream=True)])
    assert_error(chat.get("/ready"), 503)
    for response in (*turns, reading.result()):
        assert_error(response, 503)
        assert int(response.headers["Retry-After"]) > 0
    assert model.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("answer", [b"200 OK", b"302 Found", b"404 Not Found"])
def test_a_stranger_in_place_of_the_persistence_service_is_a_502(
    lost: tuple[Service, int], model: FakeOpenAI, answer: bytes
) -> None:
    chat, port = lost
    with socket.create_server(("127.0.0.1", port)) as stranger, ThreadPoolExecutor() as pool:
        asked = pool.submit(post_turn, chat, new_turn("hello"))
        stranger.settimeout(0.1)
        while not asked.done():  # what stores the question, what marks the turn, and what gives a mark back
            with contextlib.suppress(TimeoutError), stranger.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi" % answer)
    response = asked.result()
    assert_error(response, 502)
    assert "API_BASE_URL" in response.json()["message"]
    assert model.requests == []


@pytest.fixture
def fragile(folder: Path, chat_settings: Settings, database_url: str) -> Iterator[tuple[Service, Service, Settings]]:
    """A chat service, and below it a persistence service that may be spoiled, on the database of all tests."""
    settings = {"DATABASE_URL": database_url, "API_KEY": KEY, "PORT": free_port(), "WEB_CONCURRENCY": 1}
    with running("persistence", folder, **settings) as persistence:
        own = {"API_BASE_URL": persistence.url, "OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
        with running("chat", folder, **(chat_settings | own)) as chat:
            yield chat, persistence, settings


@pytest.mark.slow
def test_a_reply_waits_for_the_persistence_service_to_come_back(
    fragile: tuple[Service, Service, Settings], model: FakeOpenAI, persistence: Service
) -> None:
    chat, spoiled, settings = fragile
    turns = [new_turn("hello"), new_turn("hello stream", stream=True)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [chat] * 2, turns)
        wait_for(lambda: len(model.requests) == 2)
        spoiled.stop()
        model.may_answer.set()
        with socket.create_server(("127.0.0.1", spoiled.port)) as gap:
            gap.settimeout(10)
            for _ in range(20):  # more than one call's own tries
                gap.accept()[0].close()
        with running("persistence", spoiled.output.parent, **settings):
            answers = list(map(answer_of, responses.result()))
    assert answers == [stored(persistence, turn) for turn in turns]
    assert len(model.requests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("end_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reply_that_can_not_be_stored_is_handed_over(
    fragile: tuple[Service, Service, Settings], model: FakeOpenAI, persistence: Service, end_signal: signal.Signals
) -> None:
    chat, spoiled, _settings = fragile
    turns = [new_turn("hello"), new_turn("hello stream", stream=True)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [chat] * 2, turns)
        wait_for(lambda: len(model.requests) == 2)
        for pid in (pids := [spoiled.process.pid, *spoiled.workers()]):
            os.kill(pid, end_signal)
        try:
            model.may_answer.set()
            began = time.monotonic()
            asked = pool.submit(post_turn, chat, new_turn("another"))
            whole, streamed = responses.result()
            assert 50 < time.monotonic() - began < 90
        finally:
            for pid in pids if end_signal == signal.SIGSTOP else ():
                os.kill(pid, signal.SIGCONT)
    assert_error(asked.result(), 503)
    assert int(whole.headers["Retry-After"]) > 0
    for response in (whole, streamed):
        error = error_of(response)
        assert (error["code"], error["errors"]["reply"][:14]) == (503, "reply to hello")
    assert len(model.requests) == 2


def test_replies_are_stored_though_their_callers_hang_up(
    patient_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turns = [new_turn("fault: steps 3") for _ in range(50)]
    for turn in turns[:45]:
        with stream(patient_chat, turn) as response:
            next(live_events(response))
    with ThreadPoolExecutor() as pool:
        for lost in [pool.submit(post_turn, patient_chat, turn, 1) for turn in turns[45:]]:
            assert isinstance(lost.exception(), requests.Timeout)
    model.steps.release(150)
    for turn in turns:
        wait_for(lambda turn=turn: len(stored(persistence, turn)) == 2)  # type: ignore[misc]
        assert stored(persistence, turn)[1]["content"] == "piece 0 piece 1 piece 2 "
    assert len(model.requests) == 50


@pytest.mark.slow
def test_a_provider_that_takes_no_connection_is_a_502(folder: Path, chat_settings: Settings) -> None:
    with socket.socket() as deaf, contextlib.ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(8):  # once its queue is full, Linux drops what else comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        chat = stack.enter_context(
            running("chat", folder, **(chat_settings | {"OPENAI_BASE_URL": url, "OPENAI_TIMEOUT": 60}))
        )
        response = post_turn(chat, new_turn("hello"))
    assert_error(response, 502)
    assert "OPENAI_BASE_URL" in response.json()["message"]


def test_the_log_tells_how_a_turn_failed_whose_caller_had_gone(patient_chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("fault: say one, wait 0.3, say two, wait 0.3, say three, wait 0.3, break")
    with stream(patient_chat, turn) as response:
        next(live_events(response))
    line = wait_for(lambda: [line for line in patient_chat.text().splitlines() if turn["message_id"] in line])[0]
    assert json.loads(line)["failure"].startswith("502: The model's provider")


@pytest.mark.slow
def test_turns_that_are_under_way_at_a_stop_are_finished(
    folder: Path, chat_settings: Settings, model: FakeOpenAI, persistence: Service
) -> None:
    streamed, whole, abandoned = turns = [new_turn("fault: steps 3") for _ in range(3)]
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as chat, ThreadPoolExecutor() as pool:
        answer = pool.submit(post_turn, chat, whole)
        with pytest.raises(requests.Timeout):
            post_turn(chat, abandoned, 0.5)
        with stream(chat, streamed) as response:
            events = live_events(response)
            assert next(events)[0] == "message"
            chat.process.send_signal(signal.SIGTERM)
            wait_for(chat.is_refused)
            model.steps.release(9)
            assert [name for name, _ in events] == ["delta", "delta", "delta", "reply"]
        assert answer_of(answer.result()) == stored(persistence, whole)
        assert chat.process.wait(20) == 0
    assert [len(stored(persistence, turn)) for turn in turns] == [2, 2, 2]


@pytest.fixture(scope="module")
def narrow_chat(chat_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A chat service with a place for one turn."""
    own = {"OPENAI_TIMEOUT": 30, "WEB_CONCURRENCY": 1, "MAX_TURNS": 1}
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)) as service:
        yield service


def test_a_turn_that_finds_no_place_is_to_come_back(narrow_chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("fault: steps 1")
    with stream(narrow_chat, turn) as held:
        events = live_events(held)
        next(events)
        for streamed in (False, True):
            response = narrow_chat.post("/chat", json=new_turn("hello", stream=streamed))
            assert_error(response, 503)
            assert int(response.headers["Retry-After"]) > 0
        for path in ("/health", "/ready", f"/chat/{turn['chat_id']}"):
            assert narrow_chat.get(path).status_code == 200
        model.steps.release()
        assert [name for name, _ in events] == ["delta", "reply"]
    assert model.asked("hello") == []


@whole_and_streamed
def test_a_failure_gives_its_place_back(narrow_chat: Service, model: FakeOpenAI, streamed: bool) -> None:
    turn = new_turn("hello")
    faults = ("status 429", "say half, break", "role, finish stop", "data garbage", "flood", "say half")
    for body in (*(new_turn(f"fault: {fault}") for fault in faults), turn, turn | {"content": "other"}):
        narrow_chat.post("/chat", json=body | {"stream": streamed})
        assert wait_for(lambda: narrow_chat.post("/chat", json=new_turn("well")).status_code == 200)
