"""The server under both services: what arrives slowly or broken, stops, and workers that are killed."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
import requests

from persistence.deadline import REQUEST_SECONDS
from tests.chats import live_events, new_turn, post_turn, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.load import HEADERS, Load, locked_messages
from tests.messages import new_id, new_message
from tests.services import KEY, Service, receive, seconds_of, wait_for

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"


def request_of(path: str, body: bytes, *headers: str) -> bytes:
    """Return a POST in bytes; with its length, if no headers are given."""
    given = headers or (f"Content-Length: {len(body)}",)
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in HEADERS.items()), *given]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(body: bytes = b"", *headers: str) -> bytes:
    return request_of("/messages/", body or json.dumps(new_message()).encode(), *headers)


def chunks_of(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def status_of(response: bytes) -> int:
    return int(response.split()[1])


def has_ended(connection: socket.socket) -> bool:
    """Wait until the server has closed the connection, whether it has read everything or not."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def service(make_service: Callable[..., Service], make_database: Callable[[], str]) -> Service:
    """A persistence service of one's own, with two workers."""
    return make_service("persistence", DATABASE_URL=make_database(), API_KEY=KEY)


@pytest.fixture
def slow_chat(make_service: Callable[..., Service], model: FakeOpenAI, chat_settings: dict[str, Any]) -> Service:
    """A chat service of one's own, whose model may take its time."""
    return make_service("chat", **(chat_settings | {"OPENAI_TIMEOUT": 90}))


def test_pipelined_requests_are_answered_in_order(persistence: Service) -> None:
    with persistence.connect() as connection:
        connection.sendall(HEALTH + post() + HEALTH.replace(b"health", b"nothing") + HEALTH)
        received = b""
        while received.count(b"HTTP/1.1 ") < 4:
            received += connection.recv(65536)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"201", b"401", b"200"]


@pytest.mark.slow
def test_a_connection_is_kept_for_more_requests_but_not_for_long(persistence: Service) -> None:
    with persistence.connect() as connection:
        for _ in range(3):
            connection.sendall(post())
            assert status_of(receive(connection)) == 201
        assert has_ended(connection)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"garbage\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X-Many: x\r\n" * 2000 + b"\r\n",
        b"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /health HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=range(8),
)
def test_what_is_no_http_is_turned_down_at_once(persistence: Service, request_bytes: bytes) -> None:
    with persistence.connect() as connection:
        connection.sendall(request_bytes)
        response = receive(connection)
        assert 400 <= status_of(response) < 500
        assert b"connection: close" in response.lower()
        assert has_ended(connection)


@pytest.mark.parametrize("chunks", [b"-6\r\n", b"zz\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX0\r\n\r\n", b"\r\n"])
def test_malformed_chunks_are_a_400(persistence: Service, chunks: bytes) -> None:
    with persistence.connect() as connection:
        connection.sendall(post(chunks, CHUNKED))
        response = receive(connection)
        assert json.loads(response.partition(b"\r\n\r\n")[2])["code"] == 400
        assert has_ended(connection)


def test_chunks_are_limited_in_their_sum(persistence: Service) -> None:
    for count, status in ((10, 400), (11, 413)):
        body = chunks_of(*[b"x" * 100_000] * count)
        assert status_of(persistence.raw(post(body, CHUNKED), 30)) == status


def test_a_client_that_sends_all_of_a_body_too_large_is_told(persistence: Service) -> None:
    assert status_of(persistence.raw(post(b"x" * 30_000_000), 30)) == 413


def test_a_body_in_many_tiny_chunks_does_not_hold_its_worker(patient_chat: Service) -> None:
    body = request_of("/chat", b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n", CHUNKED)
    answers = 0
    with ThreadPoolExecutor() as pool:
        call = pool.submit(patient_chat.raw, body, 60)
        while not call.done():
            assert requests.get(f"{patient_chat.url}/health", timeout=30).status_code == 200
            answers += 1
    assert status_of(call.result()) == 400
    assert answers > 10


@pytest.mark.parametrize(("name", "path"), [("persistence", "/messages/"), ("chat", "/chat")])
def test_nobody_waits_for_a_hundred_slow_clients(request: pytest.FixtureRequest, name: str, path: str) -> None:
    service: Service = request.getfixturevalue(name)

    def new_body() -> dict[str, Any]:
        return new_message() if name == "persistence" else new_turn("hello")

    with ExitStack() as stack:
        slow = [stack.enter_context(service.connect()) for _ in range(100)]
        rests = []
        for number, connection in enumerate(slow):
            whole = request_of(path, json.dumps(new_body()).encode())
            sent = len(whole) - 10 if number % 2 else 10  # half of them are slow with the head, half with the body
            connection.sendall(whole[:sent])
            rests.append(whole[sent:])
        for _ in range(5):
            status, seconds = seconds_of(lambda: service.post(path, json=new_body()))
            assert (status < 300, seconds < 2) == (True, True), seconds
        for connection, rest in list(zip(slow, rests, strict=True))[1::2]:
            connection.sendall(rest)
            assert status_of(receive(connection)) < 300


def test_a_body_that_ends_before_its_length_is_a_400_and_stores_nothing(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    body = json.dumps(message).encode()  # which can be read without what is missing
    with persistence.connect(10) as connection:
        connection.sendall(post(body, f"Content-Length: {len(body) + 1}"))
        connection.shutdown(socket.SHUT_WR)
        assert status_of(receive(connection)) == 400
    assert persistence.get(f"/messages/{message['message_id']}").status_code == 404


@pytest.mark.slow
def test_a_body_may_take_longer_than_the_database(persistence: Service) -> None:
    request = post()
    with persistence.connect() as connection:
        connection.sendall(request[:-1])
        time.sleep(REQUEST_SECONDS + 1)
        connection.sendall(request[-1:])
        assert status_of(receive(connection)) == 201


@pytest.mark.slow
@pytest.mark.parametrize("sends_a_little", [False, True])
def test_a_body_that_does_not_come_in_time_is_a_408(persistence: Service, sends_a_little: bool) -> None:
    with persistence.connect(0.5) as connection:
        connection.sendall(post(b"{", "Content-Length: 1000"))
        began, response = time.monotonic(), b""
        while not response and time.monotonic() < began + 40:
            if sends_a_little:
                connection.sendall(b" ")
            response = receive(connection)
        assert json.loads(response.partition(b"\r\n\r\n")[2])["code"] == 408
        assert 15 < time.monotonic() - began < 30
        connection.settimeout(10)
        assert has_ended(connection)


@pytest.mark.parametrize("end_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_begun(
    database_url: str, make_service: Callable[..., Service], end_signal: signal.Signals
) -> None:
    service = make_service("persistence", DATABASE_URL=database_url, API_KEY=KEY)
    with ThreadPoolExecutor() as pool:
        with locked_messages(database_url) as waiting:
            calls = [pool.submit(service.raw, post(), 30) for _ in range(6)]
            wait_for(lambda: waiting() == 6)
            pids = service.workers() if end_signal == signal.SIGINT else []  # a terminal's Ctrl-C reaches all of them
            for pid in (*pids, service.process.pid):
                os.kill(pid, end_signal)
            wait_for(service.is_refused, 2, "the end of listening")
            assert service.process.poll() is None
        assert [status_of(call.result()) for call in calls] == [201] * 6
    assert service.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["service", "slow_chat"])
def test_a_stop_does_not_wait_for_idle_connections(request: pytest.FixtureRequest, name: str) -> None:
    service: Service = request.getfixturevalue(name)
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(service.connect())
            connection.sendall(HEALTH)
            receive(connection)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 4


@pytest.mark.slow
def test_a_stop_under_load_loses_no_request(service: Service) -> None:
    with Load(service, clients=16) as load:
        load.wait_for_more(200)
        assert service.stop() == 0
        assert load.losses() == []
        assert load.statuses() == {201}
        assert all(client.is_turned_away for client in load.clients)


@pytest.mark.slow
def test_a_turn_that_a_stop_cut_is_completed_by_a_repeat(
    persistence: Service,
    chat: Service,
    model: FakeOpenAI,
    make_service: Callable[..., Service],
    chat_settings: dict[str, Any],
) -> None:
    stopped = make_service("chat", **(chat_settings | {"OPENAI_TIMEOUT": 90, "GRACEFUL_TIMEOUT": 2}))
    turn = new_turn(f"fault: hold # {new_id()}")
    response = stream(stopped, turn)
    events = live_events(response)
    assert next(events)[0] == "message"
    began = time.monotonic()
    assert stopped.stop() == 0
    assert 1 < time.monotonic() - began < 10
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        list(events)
    model.is_well = True
    assert post_turn(chat, turn).status_code == 200
    assert len(stored(persistence, turn)) == 2


@pytest.mark.parametrize("module", ["persistence", "chat"])
def test_a_taken_port_is_one_clear_line(
    persistence: Service, make_service: Callable[..., Service], module: str
) -> None:
    service = make_service(module, wait=False, PORT=persistence.port, API_KEY=KEY, DATABASE_URL="host=127.0.0.1")
    assert service.process.wait(30) == 1
    taken = f"{module}: PORT: can't listen on 127.0.0.1:{persistence.port}: Address already in use\n"
    assert service.text() == taken


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_loses_nothing_stored(service: Service) -> None:
    killed, other = service.workers()
    with Load(service, clients=8) as load:
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(service.workers()) == 2 and killed not in service.workers(), what="a new worker")
        load.wait_for_more(200)
    assert other in service.workers()
    assert load.statuses() <= {200, 201}
    stored = {message["message_id"] for message in service.get("/messages/").json()}
    assert {message_id for client in load.clients for message_id in client.stored} <= stored


@pytest.mark.slow
def test_workers_end_with_a_killed_master(
    service: Service, database_url: str, make_service: Callable[..., Service]
) -> None:
    workers = [psutil.Process(pid) for pid in service.workers()]
    service.process.kill()
    service.process.wait()
    assert psutil.wait_procs(workers, 30)[1] == []
    again = make_service("persistence", PORT=service.port, DATABASE_URL=database_url, API_KEY=KEY)
    assert again.get("/messages/?limit=1").status_code == 200
