"""A turn whose services are killed at any of its steps: a repeat completes it, with one question and one reply."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import requests

from tests.chats import answer_of, error_of, kill, new_turn, post_turn, running, stored
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id, store
from tests.services import KEY, Service, free_port, wait_for

pytestmark = pytest.mark.slow

REQUESTS = ("question", "mark", "history", "reply")  # what persistence is sent in a turn, the first two at once
PLACES = ("before", "after", "midway")  # not passed on yet; passed on, but not answered; half of the answer is sent
HELD = [f"{request}-{place}-{way}" for request in REQUESTS for place in PLACES for way in ("whole", "streamed")]
ASKING = [f"model-{state}-{way}" for state in ("asked", "begun", "midway") for way in ("whole", "streamed")]
ANSWERED = ["answered-whole", "answered-streamed"]
STEPS = [*HELD, *ASKING, *ANSWERED]
FAULTS = {"model-begun": "role, hold, say all, finish stop", "model-midway": "say ha, hold, say lf, finish stop"}
WHOLE_REPLY = re.compile(r"all|half|reply number \d+|reply to fault: .* # .*")
WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database WHERE NOT granted AND datname = current_database()
"""
each_step = pytest.mark.parametrize("step", STEPS)


class StepHandler(BaseHTTPRequestHandler):
    """Passes requests on, and their answers back. The request id is the step at which the turn is held."""

    protocol_version = "HTTP/1.1"
    server: "StepProxy"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = self.headers.get("X-Request-ID", "")
        name = {"PUT": "mark", "GET": "history"}.get(self.command, "reply" if b'"ai"' in body else "question")
        if name == "mark" and self.server.instead_of_marks:
            self.wfile.write(self.server.instead_of_marks)
            return
        try:
            self.server.reach(step, f"{name}-before")
            with contextlib.closing(HTTPConnection("127.0.0.1", self.server.target, timeout=60)) as connection:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                answer = response.read()
            self.server.reach(step, f"{name}-after")
            kind = response.headers["Content-Type"]
            head = f"HTTP/1.1 {response.status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(answer)}\r\n\r\n"
            self.wfile.write(head.encode() + answer[: len(answer) // 2])
            self.server.reach(step, f"{name}-midway")
            self.wfile.write(answer[len(answer) // 2 :])
        except (OSError, HTTPException):
            self.close_connection = True
        if step.startswith(name):  # not the mark, which comes beside the question
            self.server.held.discard(step)

    do_GET = do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815  # the names that its base calls


class StepProxy(ThreadingHTTPServer):
    """Stands before the persistence service at the port `target`, and holds each turn once, at its step."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), StepHandler)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.held: set[str] = set()
        self.reached: set[str] = set()
        self.connections: list[socket.socket] = []
        self.may_go_on = threading.Event()
        self.loses = False
        self.instead_of_marks = b""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def verify_request(self, request: Any, _client_address: Any) -> bool:
        self.connections.append(request)
        return True

    def reach(self, step: str, point: str) -> None:
        """Hold the turn if this is its step. Raises ConnectionError when what is held is lost."""
        if step.rpartition("-")[0] == point and step not in self.reached:
            self.reached.add(step)
            self.held.add(step)
            self.may_go_on.wait(90)
            if self.loses:
                raise ConnectionError

    def go_on(self, *, loses: bool) -> None:
        """Pass on what is held, or lose it, and all connections with it, as when their other end is killed."""
        self.loses = loses
        for connection in self.connections if loses else ():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.may_go_on.set()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


class Outcome(NamedTuple):
    """What a turn was answered, at first (None: nothing) and again, and what it left in its chat and cost in calls."""

    first: requests.Response | None
    repeat: requests.Response
    messages: list[dict[str, Any]]
    calls: list[dict[str, Any]]


class Turns:
    """One turn for each step, in a chat of its own that holds two messages; all are held there at the same time."""

    def __init__(self, persistence: Service, model: FakeOpenAI) -> None:
        model.reset()
        self.model = model
        self.turns = {step: self.new(persistence, step) for step in STEPS}
        self.pool = ThreadPoolExecutor(len(STEPS))
        self.firsts: dict[str, Future[requests.Response]] = {}

    def new(self, persistence: Service, step: str) -> dict[str, Any]:
        chat_id = new_id()
        for role in ("human", "ai"):
            store(persistence, chat_id=chat_id, role=role, content=f"earlier by {role}")
        fault = FAULTS.get(step.rpartition("-")[0], "count")
        return new_turn(f"fault: {fault} # {step}", chat_id=chat_id, stream=step.endswith("streamed"))

    def post(self, chat: Service, step: str, **headers: str) -> requests.Response:
        headers |= {"x-api-key": KEY}
        return requests.post(f"{chat.url}/chat", json=self.turns[step], headers=headers, timeout=180)

    def begin(self, chat: Service, *steps: str) -> None:
        for step in steps:
            self.firsts[step] = self.pool.submit(self.post, chat, step, **{"X-Request-ID": step})

    def begin_all(self, chat: Service, proxy: StepProxy) -> None:
        """Begin each turn, and wait until each has come to its step."""
        for step in HELD:  # one by one: turns that begin together are marked together
            self.begin(chat, step)
            wait_for(lambda step=step: step in proxy.held)  # type: ignore[misc]
        self.begin(chat, *ANSWERED)
        for step in ANSWERED:
            self.firsts[step].result()
        self.model.may_answer.clear()
        self.begin(chat, *ASKING)
        wait_for(lambda: all(self.model.asked(self.turns[step]["content"]) for step in ASKING))

    def go_on(self, proxy: StepProxy, *, loses: bool) -> None:
        """Let the model go on, and what is held at the proxy, or lose that."""
        proxy.go_on(loses=loses)
        self.model.may_answer.set()
        self.model.steps.release(20)

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


def assert_told_to_come_back(response: requests.Response) -> None:
    """Expect a 503 that says when to come back, or, in a stream that has begun, its event."""
    assert error_of(response)["code"] == 503
    assert response.status_code == 200 or int(response.headers["Retry-After"]) > 0


def assert_completed(outcome: Outcome) -> None:
    """Expect one question and one whole reply, which the repeat was answered; and what was before, in each call."""
    human, ai, *answer = outcome.messages
    assert [human["content"], ai["content"]] == ["earlier by human", "earlier by ai"]
    assert [message["role"] for message in answer] == ["human", "ai"]
    assert WHOLE_REPLY.fullmatch(answer[1]["content"])
    assert answer_of(outcome.repeat) == answer
    for call in outcome.calls:
        assert [message["content"] for message in call["messages"][-3:-1]] == ["earlier by human", "earlier by ai"]


@pytest.fixture(scope="module", params=[True, False], ids=["brief", "long"])
def outage(
    request: pytest.FixtureRequest,
    make_database: Callable[[], str],
    chat_settings: dict[str, Any],
    model_server: FakeOpenAI,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[bool, dict[str, Outcome]]:
    """Kills the persistence service; starts it again before anybody finds out, or when all have given up."""
    folder = tmp_path_factory.mktemp("outage")
    settings = {"DATABASE_URL": make_database(), "API_KEY": KEY, "PORT": free_port()}
    with contextlib.ExitStack() as stack:
        doomed = stack.enter_context(running("persistence", folder, **settings))
        proxy = stack.enter_context(StepProxy(doomed.port))
        own = {"API_BASE_URL": proxy.url, "OPENAI_TIMEOUT": 120}
        chat = stack.enter_context(running("chat", folder, **(chat_settings | own)))
        turns = Turns(doomed, model_server)
        turns.begin_all(chat, proxy)
        kill(doomed)
        if not request.param:
            turns.go_on(proxy, loses=True)
            turns.answers()
        again = stack.enter_context(running("persistence", folder, **settings))
        turns.go_on(proxy, loses=True)
        turns.answers()
        outcomes = turns.outcomes(again, turns.repeat_all(chat))
        assert not re.search('"status": 500|Traceback', chat.text() + again.text())
        return request.param, outcomes


@each_step
def test_an_outage_is_noticed_only_if_it_is_long_or_cuts_the_history(
    outage: tuple[bool, dict[str, Outcome]], step: str
) -> None:
    is_brief, outcomes = outage
    assert_completed(outcome := outcomes[step])
    assert outcome.first is not None
    if step.startswith("history-midway") or not (is_brief or step in ANSWERED):
        assert_told_to_come_back(outcome.first)
    else:
        assert answer_of(outcome.first) == answer_of(outcome.repeat)
        assert len(outcome.calls) == 1


@pytest.fixture(scope="module", params=["lost", "early", "late"])
def takeover(
    request: pytest.FixtureRequest,
    persistence: Service,
    shared_chat: Service,
    chat_settings: dict[str, Any],
    model_server: FakeOpenAI,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Outcome]:
    """Kills the chat service, and sends all turns to another one.

    What the killed one had sent is lost, or reaches the persistence service before the repeats, or after them.
    """
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(StepProxy(persistence.port))
        own = {"API_BASE_URL": proxy.url, "OPENAI_TIMEOUT": 120}
        doomed = stack.enter_context(running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | own)))
        turns = Turns(persistence, model_server)
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
        return turns.outcomes(persistence, repeats)


@each_step
def test_a_turn_is_completed_elsewhere_when_its_chat_service_is_killed(takeover: dict[str, Outcome], step: str) -> None:
    outcome = takeover[step]
    assert_completed(outcome)
    if step in ANSWERED:
        assert outcome.first is not None
        assert answer_of(outcome.first) == answer_of(outcome.repeat)
    else:
        assert outcome.first is None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 -\r\nContent-Length: 0\r\n\r\n",  # as an old persistence service
        b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_a_turn_goes_on_without_a_mark_where_nobody_keeps_marks(
    persistence: Service, chat_settings: dict[str, Any], model: FakeOpenAI, folder: Path, answer: bytes
) -> None:
    with StepProxy(persistence.port) as proxy:
        proxy.instead_of_marks = answer
        with running("chat", folder, **(chat_settings | {"API_BASE_URL": proxy.url})) as chat:
            turn = new_turn("fault: count")
            answers = [answer_of(post_turn(chat, turn)) for _ in range(2)]
    assert answers == [stored(persistence, turn)] * 2
    assert len(model.requests) == 1


@pytest.mark.parametrize("request_name", ["question", "reply"])
def test_a_turn_whose_statement_outlives_the_persistence_service(
    request_name: str, make_database: Callable[[], str], chat_settings: dict[str, Any], model: FakeOpenAI, folder: Path
) -> None:
    turn = new_turn("fault: count # outlived")
    settings: dict[str, Any] = {"DATABASE_URL": make_database(), "API_KEY": KEY, "PORT": free_port()}
    with contextlib.ExitStack() as stack:
        doomed = stack.enter_context(running("persistence", folder, **settings))
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
            wait_for(lambda: blocker.execute(WAITING).fetchone() == (1,))
            kill(doomed)
            again = stack.enter_context(running("persistence", folder, **settings))
        if first.result().status_code != 200:
            assert_told_to_come_back(first.result())
        model.is_well = True
        assert answer_of(post_turn(chat, turn)) == stored(again, turn)
