"""A turn whose services are killed at any of its steps: a repeat completes it, with one question and one reply."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import requests

from tests.chats import events_of, new_turn, post_turn, running, stored
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id, store
from tests.services import KEY, Service, free_port, wait_for

pytestmark = pytest.mark.slow

REQUESTS = ("question", "history", "reply")  # what a turn sends to the persistence service, in this order
PLACES = ("before", "after", "midway")  # not passed on yet; passed on, but not answered; half of the answer is sent
STOPS = {f"{name}-{place}": (number, place) for number, name in enumerate(REQUESTS, 1) for place in PLACES}
STEPS = [*STOPS, "model-asked", "model-begun", "model-midway", "answered"]
IN_PIECES = ("model-begun", "model-midway")
WHOLE_REPLY = re.compile(r"piece 0 piece 1 |reply number \d+|reply to fault: .* # .*")
each_step = pytest.mark.parametrize("step", STEPS)


class StepHandler(BaseHTTPRequestHandler):
    """Passes requests on, and their answers back. The request id is the step at which the turn is held."""

    protocol_version = "HTTP/1.1"
    server: "StepProxy"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = self.headers.get("X-Request-ID", "")
        self.server.counts[step] += 1  # without a lock: a turn sends one request after another
        number = self.server.counts[step]
        try:
            self.server.reach(step, (number, "before"))
            with contextlib.closing(HTTPConnection("127.0.0.1", self.server.target, timeout=60)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                answer = response.read()
            self.server.reach(step, (number, "after"))
            kind = response.headers["Content-Type"]
            head = f"HTTP/1.1 {response.status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
            self.wfile.write(head.encode() + answer[: len(answer) // 2])
            self.server.reach(step, (number, "midway"))
            self.wfile.write(answer[len(answer) // 2 :])
        except (OSError, HTTPException):
            self.close_connection = True
        self.server.held.discard(step)

    do_GET = do_POST = pass_on  # noqa: N815  # the names that its base calls


class StepProxy(ThreadingHTTPServer):
    """Stands before the persistence service at the port `target`, and holds each turn once, at its step."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), StepHandler)
        self.target = target
        self.counts: Counter[str] = Counter()
        self.held: set[str] = set()
        self.connections: list[socket.socket] = []
        self.may_go_on = threading.Event()
        self.loses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.connections.append(request)
        return True

    def reach(self, step: str, point: tuple[int, str]) -> None:
        """Hold the turn if this is its step. Raises ConnectionError when what is held is lost."""
        if STOPS.get(step) == point:
            self.held.add(step)
            self.may_go_on.wait(60)
            if self.loses:
                raise ConnectionError

    def go_on(self, *, loses: bool) -> None:
        """Pass on what is held, or lose it, and all connections with it, as when their other end is killed."""
        self.loses = loses
        for connection in self.connections if loses else ():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.may_go_on.set()


@contextlib.contextmanager
def proxy_before(service: Service) -> Iterator[StepProxy]:
    with StepProxy(service.port) as proxy:
        yield proxy
        proxy.shutdown()


class Outcome(NamedTuple):
    """What a turn was answered, at first (None: nothing) and again, and what it left in its chat and cost in calls."""

    first: requests.Response | None
    repeat: requests.Response
    messages: list[dict[str, Any]]
    calls: list[dict[str, Any]]


class Turns:
    """One turn for each step, in a chat of its own that holds two messages; all are held there at the same time."""

    def __init__(self, persistence: Service, model: FakeOpenAI, *, streamed: bool) -> None:
        model.reset()
        self.model, self.streamed = model, streamed
        self.turns = {step: self.new(persistence, step) for step in STEPS}
        self.pool = ThreadPoolExecutor(len(STEPS))
        self.firsts: dict[str, Future[requests.Response]] = {}

    def new(self, persistence: Service, step: str) -> dict[str, Any]:
        chat_id = new_id()
        for role in ("human", "ai"):
            store(persistence, chat_id=chat_id, role=role, content=f"earlier by {role}")
        fault = "steps 2" if step in IN_PIECES else "count"
        return new_turn(f"fault: {fault} # {step}", chat_id=chat_id, stream=self.streamed)

    def post(self, chat: Service, step: str, **headers: str) -> requests.Response:
        headers |= {"x-api-key": KEY}
        return requests.post(f"{chat.url}/chat", json=self.turns[step], headers=headers, timeout=60)

    def begin(self, chat: Service, *steps: str) -> None:
        for step in steps:
            self.firsts[step] = self.pool.submit(self.post, chat, step, **{"X-Request-ID": step})

    def begin_all(self, chat: Service, proxy: StepProxy) -> None:
        """Begin each turn, and wait until each has come to its step."""
        self.begin(chat, *STOPS, "answered")
        wait_for(lambda: proxy.held == set(STOPS))
        self.firsts["answered"].result()
        self.model.steps.release()
        self.begin(chat, "model-midway")
        wait_for(lambda: self.is_asked("model-midway") and self.model.steps._value == 0)
        self.model.may_answer.clear()
        self.begin(chat, "model-begun", "model-asked")
        wait_for(lambda: self.is_asked("model-begun") and self.is_asked("model-asked"))

    def is_asked(self, step: str) -> bool:
        return bool(self.model.asked(self.turns[step]["content"]))

    def go_on(self, proxy: StepProxy, *, loses: bool) -> None:
        """Let the model go on, and what is held at the proxy, or lose that."""
        proxy.go_on(loses=loses)
        self.model.may_answer.set()
        self.model.steps.release(10)

    def answers(self) -> dict[str, requests.Response | None]:
        """Wait for what the turns are answered at first."""
        return {step: None if future.exception() else future.result() for step, future in self.firsts.items()}

    def repeat_all(self, chat: Service) -> dict[str, requests.Response]:
        """Send all of them again at the same time, to a model that has become well."""
        self.model.is_well = True
        return dict(zip(STEPS, self.pool.map(lambda step: self.post(chat, step), STEPS), strict=True))

    def outcomes(self, persistence: Service, repeats: dict[str, requests.Response]) -> dict[str, Outcome]:
        firsts = self.answers()
        self.pool.shutdown()
        return {
            step: Outcome(firsts[step], repeats[step], stored(persistence, turn), self.model.asked(turn["content"]))
            for step, turn in self.turns.items()
        }


def kill(service: Service) -> None:
    """Kill all of its processes, as a machine does that loses its power."""
    for pid in (service.process.pid, *service.workers()):
        os.kill(pid, signal.SIGKILL)
    service.process.wait(10)
    service.session.close()
    wait_for(lambda: refuses(service), what="the end of listening")


def refuses(service: Service) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", service.port)) != 0


def stored_of(response: requests.Response) -> list[dict[str, Any]]:
    """Give the question and the reply of an answer, whole or streamed."""
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"].startswith("text/event-stream"):
        events = dict(events_of(response.content.decode()))
        return [events["message"], events["reply"]]
    return list(response.json().values())


def assert_told_to_come_back(response: requests.Response) -> None:
    """Expect a 503 that says when to come back, or, in a stream that has begun, its event."""
    if response.status_code == 200:
        name, error = events_of(response.content.decode())[-1]
        assert (name, error["code"]) == ("error", 503)
    else:
        assert (response.status_code, response.json()["code"]) == (503, 503)
        assert int(response.headers["Retry-After"]) > 0


def assert_completed(outcome: Outcome) -> None:
    """Expect, after what was there before, one question and one whole reply, which the repeat was answered."""
    *earlier, question, reply = outcome.messages
    assert [message["content"] for message in earlier] == ["earlier by human", "earlier by ai"]
    assert (question["role"], reply["role"]) == ("human", "ai")
    assert WHOLE_REPLY.fullmatch(reply["content"])
    assert stored_of(outcome.repeat) == [question, reply]


def assert_remembered(outcome: Outcome) -> None:
    """Expect each call to have given the model what the chat held before."""
    for call in outcome.calls:
        *_, human, ai, _question = [message["content"] for message in call["messages"]]
        assert (human, ai) == ("earlier by human", "earlier by ai")


class Played(NamedTuple):
    """What became of all turns, and what the services logged."""

    outcomes: dict[str, Outcome]
    log: str


@pytest.fixture(scope="module", params=["whole", "streamed"])
def is_streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "streamed")


@pytest.fixture(scope="module")
def play_outage(
    make_database: Callable[[], str],
    chat_settings: dict[str, Any],
    model_server: FakeOpenAI,
    is_streamed: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[bool], Played]:
    """Kills the persistence service; starts it again before anybody finds out, or when all have given up."""

    def play(is_brief: bool) -> Played:
        folder = tmp_path_factory.mktemp("outage")
        settings = {"DATABASE_URL": make_database(), "API_KEY": KEY, "PORT": free_port()}
        with contextlib.ExitStack() as stack:
            doomed = stack.enter_context(running("persistence", folder, **settings))
            proxy = stack.enter_context(proxy_before(doomed))
            own = {"API_BASE_URL": f"http://127.0.0.1:{proxy.server_port}", "OPENAI_TIMEOUT": 30}
            chat = stack.enter_context(running("chat", folder, **(chat_settings | own)))
            turns = Turns(doomed, model_server, streamed=is_streamed)
            turns.begin_all(chat, proxy)
            kill(doomed)
            if not is_brief:
                turns.go_on(proxy, loses=True)
                turns.answers()
            again = stack.enter_context(running("persistence", folder, **settings))
            if is_brief:
                turns.go_on(proxy, loses=True)
                turns.answers()
            repeats = turns.repeat_all(chat)
            return Played(turns.outcomes(again, repeats), chat.text() + again.text())

    return play


@pytest.fixture(scope="module")
def brief_outage(play_outage: Callable[[bool], Played]) -> Played:
    return play_outage(True)


@pytest.fixture(scope="module")
def long_outage(play_outage: Callable[[bool], Played]) -> Played:
    return play_outage(False)


@each_step
def test_a_turn_survives_a_brief_outage(brief_outage: Played, step: str) -> None:
    assert_completed(brief_outage.outcomes[step])
    assert_remembered(brief_outage.outcomes[step])


@each_step
def test_nobody_notices_a_brief_outage_but_who_was_reading_the_history(brief_outage: Played, step: str) -> None:
    outcome = brief_outage.outcomes[step]
    assert outcome.first is not None
    if step == "history-midway":
        assert_told_to_come_back(outcome.first)
    else:
        assert stored_of(outcome.first) == outcome.messages[2:]


@each_step
def test_a_turn_is_completed_after_a_long_outage(long_outage: Played, step: str) -> None:
    assert_completed(long_outage.outcomes[step])
    assert_remembered(long_outage.outcomes[step])


@each_step
def test_a_long_outage_is_told(long_outage: Played, step: str) -> None:
    outcome = long_outage.outcomes[step]
    assert outcome.first is not None
    if step == "answered":
        assert stored_of(outcome.first) == outcome.messages[2:]
    else:
        assert_told_to_come_back(outcome.first)


def test_an_outage_is_no_failure_inside(brief_outage: Played, long_outage: Played) -> None:
    for played in (brief_outage, long_outage):
        assert '"status": 500' not in played.log
        assert "Traceback" not in played.log


@pytest.mark.parametrize("request_name", ["question", "reply"])
def test_a_turn_whose_statement_outlives_the_persistence_service(
    request_name: str, make_database: Callable[[], str], chat_settings: dict[str, Any], model: FakeOpenAI, folder: Path
) -> None:
    turn = new_turn("fault: count # outlived")
    settings: dict[str, Any] = {"DATABASE_URL": make_database(), "API_KEY": KEY, "PORT": free_port()}
    settings |= {"WEB_CONCURRENCY": 1}  # one connection to the database, which knows the statement after its first use
    with contextlib.ExitStack() as stack:
        doomed = stack.enter_context(running("persistence", folder, **settings))
        store(doomed)
        own = {"API_BASE_URL": doomed.url, "OPENAI_TIMEOUT": 30}
        chat = stack.enter_context(running("chat", folder, **(chat_settings | own)))
        pool = stack.enter_context(ThreadPoolExecutor())
        with psycopg.connect(settings["DATABASE_URL"]) as blocker:
            model.may_answer.clear()
            if request_name == "reply":
                first = pool.submit(post_turn, chat, turn)
                wait_for(lambda: model.asked(turn["content"]))
            blocker.execute("LOCK TABLE messages IN SHARE MODE")  # it can be read, but nothing is stored
            if request_name == "question":
                first = pool.submit(post_turn, chat, turn)
            model.may_answer.set()
            wait_for(lambda: waits_for_lock(blocker))
            kill(doomed)
            again = stack.enter_context(running("persistence", folder, **settings))
        if first.result().status_code != 200:
            assert_told_to_come_back(first.result())
        model.is_well = True
        repeat = post_turn(chat, turn)
        assert [message["role"] for message in stored(again, turn)] == ["human", "ai"]
        assert stored_of(repeat) == stored(again, turn)


def waits_for_lock(connection: psycopg.Connection[Any]) -> bool:
    statement = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return connection.execute(statement).fetchone() == (1,)


@pytest.fixture(scope="module", params=["lost", "early", "late"])
def takeover(
    request: pytest.FixtureRequest,
    persistence: Service,
    shared_chat: Service,
    chat_settings: dict[str, Any],
    model_server: FakeOpenAI,
    is_streamed: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Played:
    """Kills the chat service, and sends all turns to another one.

    What the killed one had sent is lost, or reaches the persistence service before the repeats, or after them.
    """
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(proxy_before(persistence))
        own = {"API_BASE_URL": f"http://127.0.0.1:{proxy.server_port}", "OPENAI_TIMEOUT": 30}
        doomed = stack.enter_context(running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)))
        turns = Turns(persistence, model_server, streamed=is_streamed)
        turns.begin_all(doomed, proxy)
        kill(doomed)
        turns.answers()
        if request.param != "late":
            turns.go_on(proxy, loses=request.param == "lost")
            wait_for(lambda: not proxy.held)
        model_server.may_answer.set()
        repeats = turns.repeat_all(shared_chat)
        turns.go_on(proxy, loses=False)
        wait_for(lambda: not proxy.held)
        return Played(turns.outcomes(persistence, repeats), doomed.text())


@each_step
def test_a_turn_is_completed_elsewhere_when_its_chat_service_is_killed(takeover: Played, step: str) -> None:
    assert_completed(takeover.outcomes[step])
    assert_remembered(takeover.outcomes[step])


@each_step
def test_a_killed_chat_service_answered_no_turn_but_the_finished_one(takeover: Played, step: str) -> None:
    outcome = takeover.outcomes[step]
    if step == "answered":
        assert outcome.first is not None
        assert stored_of(outcome.first) == outcome.messages[2:]
    else:
        assert outcome.first is None
