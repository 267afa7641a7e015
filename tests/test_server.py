"""The server under both services, spoken to in raw HTTP: what arrives slowly or broken, stops, and full houses."""

import errno
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests

from persistence.web import connection as web_connection
from persistence.web.connection import ClientSocket
from tests.services import KEY, Service, receive, wait_for

MIB = 1024 * 1024
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def new_message() -> dict[str, str]:
    return {"chat_id": str(uuid.uuid4()), "content": "hello", "role": "human"}


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /messages/ HTTP/1.1", "Host: x", f"x-api-key: {KEY}", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def whole_post() -> bytes:
    body = json.dumps(new_message()).encode()
    return post(body, f"Content-Length: {len(body)}")


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def status_of(response: bytes) -> int:
    return int(response.split()[1])


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=10)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def has_ended(connection: socket.socket) -> bool:
    """Wait until the server has closed the connection."""
    return connection.recv(1) == b""


@pytest.fixture
def make_service(folder: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(database_url: str, **settings: Any) -> Service:
        services.append(Service("persistence", folder, DATABASE_URL=database_url, API_KEY=KEY, **settings))
        return services[-1]

    yield make
    for service in services:
        if service.process.poll() is None:
            service.stop()


@pytest.fixture(scope="module")
def bulk_url(make_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with 60 MB of messages, more than all buffers between it and a reader."""
    url = make_database()
    Service("persistence", tmp_path_factory.mktemp("bulk"), DATABASE_URL=url, API_KEY=KEY).stop()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO messages (message_id, chat_id, content, sent_at, role)
            SELECT gen_random_uuid(), gen_random_uuid(), repeat('x', 20000), now(), 'ai' FROM generate_series(1, 3000)
            """
        )
    return url


@contextmanager
def locked_messages(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Let every statement that touches a message wait until the end of the block."""
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        yield connection


def wait_for_waiting(connection: psycopg.Connection[Any], count: int) -> None:
    """Wait until so many statements of the service wait for the lock."""
    statement = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    wait_for(lambda: connection.execute(statement).fetchone() == (count,), what=f"{count} waiting statements")


class Calls:
    """Calls in threads of their own, and what they were answered."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.threads: list[threading.Thread] = []

    def start(self, service: Service, count: int = 1) -> None:
        for _ in range(count):
            self.threads.append(threading.Thread(target=self.post, args=(service,)))
            self.threads[-1].start()

    def post(self, service: Service) -> None:
        response = requests.post(f"{service.url}/messages/", json=new_message(), headers={"x-api-key": KEY}, timeout=30)
        self.statuses.append(response.status_code)

    def join(self) -> list[int]:
        for thread in self.threads:
            thread.join()
        return self.statuses


def is_refused(service: Service) -> bool:
    with socket.socket() as connection:
        connection.settimeout(2)
        return connection.connect_ex(("127.0.0.1", service.port)) == errno.ECONNREFUSED


def test_pipelined_requests_are_answered_in_order(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(HEALTH + whole_post() + HEALTH.replace(b"health", b"nothing") + HEALTH)
        statuses: list[bytes] = []
        received = b""
        while len(statuses) < 4:
            received += connection.recv(65536)
            statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
    assert statuses == [b"200", b"201", b"401", b"200"]


def test_a_connection_is_kept_for_more_requests(persistence: Service) -> None:
    with connect(persistence) as connection:
        for _ in range(3):
            connection.sendall(whole_post())
            assert status_of(receive(connection)) == 201


def test_http_1_0_is_answered_and_closed(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert status_of(receive(connection)) == 200
        assert has_ended(connection)


def test_a_client_that_has_said_all_still_hears_the_answer(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(whole_post())
        connection.shutdown(socket.SHUT_WR)
        assert status_of(receive(connection)) == 201


def test_a_request_in_single_bytes(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.send(b"\r")
        assert persistence.get("/health").ok  # by now, it has been read
        for byte in b"\n" + whole_post():
            connection.send(bytes([byte]))
        assert status_of(receive(connection)) == 201


def test_a_chunked_body_in_single_bytes(persistence: Service) -> None:
    body = json.dumps(new_message()).encode()
    request = post(chunked(body[:10], body[10:]), "Transfer-Encoding: chunked")
    with connect(persistence) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            connection.send(bytes([byte]))
        assert status_of(receive(connection)) == 201
        connection.sendall(HEALTH)
        assert status_of(receive(connection)) == 200


def test_chunks_may_have_extensions_and_trailers(persistence: Service) -> None:
    body = json.dumps(new_message()).encode()
    chunks = b"%x;name=value\r\n%s\r\n0\r\nX-Trailer: yes\r\n\r\n" % (len(body), body)
    assert status_of(persistence.raw(post(chunks, "Transfer-Encoding: chunked"))) == 201


@pytest.mark.parametrize(
    "chunks",
    [
        b"-6\r\n",
        b"-5\r\nhello",
        b"zz\r\n",
        b"+5\r\n",
        b"0x5\r\nhello\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"3\r\nabcdef\r\n0\r\n\r\n",
        b"\r\n",
    ],
)
def test_malformed_chunks_are_turned_down(persistence: Service, chunks: bytes) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(chunks, "Transfer-Encoding: chunked"))
        response = receive(connection)
        assert status_of(response) == 400
        assert has_ended(connection)


def test_a_malformed_body_that_nobody_reads_gets_one_answer(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"
        )
        assert status_of(receive(connection)) == 200
        assert has_ended(connection)


def test_an_endless_chunk_size_is_turned_down(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(b"1;" + b"x" * 100_000, "Transfer-Encoding: chunked"))
        assert status_of(receive(connection)) == 400


def test_a_body_is_asked_for(persistence: Service) -> None:
    body = json.dumps(new_message()).encode()
    with connect(persistence) as connection:
        connection.sendall(post(b"", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert status_of(receive(connection)) == 201


def test_a_body_too_large_is_not_asked_for(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(b"", f"Content-Length: {2 * MIB}", "Expect: 100-continue"))
        assert status_of(receive(connection)) == 413


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nX-Endless: " + b"x" * 200_000, 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\n" + b"X-Many: x\r\n" * 2000 + b"\r\n", 431),
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /health HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: " + b"0" * 8000 + b"x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"GET /health HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nTransfer-Encoding: odd\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nTransfer-Encoding: chunked, odd\r\n\r\n0\r\n\r\n", 400),
    ],
    ids=range(15),
)
def test_what_is_no_http_is_turned_down_at_once(persistence: Service, request_bytes: bytes, status: int) -> None:
    with connect(persistence) as connection:
        connection.sendall(request_bytes)
        response = receive(connection)
        assert status_of(response) == status
        assert b"connection: close" in response.lower()
        assert has_ended(connection)


@pytest.mark.parametrize("size", [MIB + 1, 30 * MIB])
def test_a_client_that_sends_all_of_a_body_too_large_is_told(persistence: Service, size: int) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(b"", f"Content-Length: {size}"))
        for _ in range(size // MIB):
            connection.sendall(b"x" * MIB)
        connection.sendall(b"x" * (size % MIB))
        response = receive(connection)
    assert status_of(response) == 413
    assert b"Connection: close" in response


def test_chunks_that_are_too_large_together(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(chunked(*[b"x" * 100_000] * 20), "Transfer-Encoding: chunked"))
        assert status_of(receive(connection)) == 413


def test_chunks_that_are_too_many(persistence: Service) -> None:
    chunks = b"1\r\nx\r\n" * 100_000  # each costs time, so that a few megabytes of them would hold a thread for long
    with connect(persistence) as connection:
        connection.sendall(post(chunks, "Transfer-Encoding: chunked"))
        assert status_of(receive(connection)) == 413


def test_a_length_of_many_digits_is_too_large(persistence: Service) -> None:
    with connect(persistence) as connection:
        connection.sendall(post(b"", f"Content-Length: {10**4000}"))
        assert status_of(receive(connection)) == 413


def test_clients_that_reset_at_once_harm_nobody(database_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(database_url, WEB_CONCURRENCY=1)
    worker_before = service.workers()
    for _ in range(3000):
        reset(connect(service))
    for _ in range(1000):
        connection = connect(service)
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        reset(connection)
    assert service.get("/ready").status_code == 200
    assert service.workers() == worker_before
    assert "exception" not in service.text()
    descriptors = Path(f"/proc/{worker_before[0]}/fd")
    wait_for(lambda: len(list(descriptors.iterdir())) < 40, what="the end of their connections")


def test_who_reads_no_answers_gets_no_more_of_them(persistence: Service) -> None:
    with socket.socket() as connection:
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(("127.0.0.1", persistence.port))
        received = b""
        with suppress(ConnectionError):
            connection.sendall(HEALTH * 400_000)
        with suppress(ConnectionResetError):
            while data := connection.recv(MIB):
                received += data
    assert 0 < received.count(b"HTTP/1.1 200") < 400_000


def test_slow_clients_do_not_keep_others_waiting(persistence: Service) -> None:
    slow = [connect(persistence) for _ in range(50)]
    request = whole_post()
    for byte in request[:20]:
        for connection in slow:
            connection.send(bytes([byte]))
        began = time.monotonic()
        assert persistence.post("/messages/", json=new_message()).status_code == 201
        assert time.monotonic() - began < 2
    for connection in slow:
        connection.sendall(request[20:])
    assert {status_of(receive(connection)) for connection in slow} <= {200, 201, 409}
    for connection in slow:
        connection.close()


@pytest.mark.parametrize("end_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_begun(
    make_database: Callable[[], str], make_service: Callable[..., Service], end_signal: signal.Signals
) -> None:
    database_url = make_database()
    service = make_service(database_url)
    calls = Calls()
    with locked_messages(database_url) as connection:
        calls.start(service, 6)
        wait_for_waiting(connection, 6)
        pids = [*service.workers(), service.process.pid] if end_signal == signal.SIGINT else [service.process.pid]
        for pid in pids:  # a terminal's Ctrl-C reaches all of them
            os.kill(pid, end_signal)
        wait_for(lambda: is_refused(service), 2, "the refusal of new connections")
        assert service.process.poll() is None
    assert calls.join() == [201] * 6
    assert service.process.wait(10) == 0


@pytest.mark.slow
def test_a_stop_under_load_loses_no_request(
    make_database: Callable[[], str], make_service: Callable[..., Service]
) -> None:
    service = make_service(make_database())
    answered: list[int] = []
    lost: list[str] = []

    def call() -> None:
        with connect(service) as connection:
            while True:
                connection.sendall(whole_post())
                response = receive(connection)
                if response:
                    answered.append(status_of(response))
                else:
                    lost.append("no answer")
                if b"Connection: close" in response or not response:
                    return

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answered) > 100)
    service.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert service.process.wait(10) == 0
    assert lost == []
    assert set(answered) == {201}


@pytest.mark.slow
def test_a_stop_does_not_wait_for_idle_connections(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url)
    idle = connect(service)
    reader = connect(service)
    reader.sendall(b"GET /messages/ HTTP/1.1\r\nHost: x\r\nx-api-key: " + KEY.encode() + b"\r\n\r\n")
    assert reader.recv(1000)
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: is_refused(service), 2)
    received = b""
    while not received.endswith(b"\r\n0\r\n\r\n"):  # it is finished, and its connection, which was to be kept, idle
        received = received[-10:] + reader.recv(MIB)
    assert service.process.wait(8) == 0
    idle.close()
    reader.close()


@pytest.mark.slow
def test_a_stop_after_a_cut_export_waits_for_the_others(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url, WEB_CONCURRENCY=1)
    with psycopg.connect(bulk_url, autocommit=True) as connection:
        cut = service.get("/messages/", stream=True, headers={"X-Request-ID": "cut"})
        body = cut.iter_content(65536)
        next(body)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%COPY (%' AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for _ in body:
                pass
    service.log("cut")
    calls = Calls()
    with locked_messages(bulk_url) as locker:
        calls.start(service)
        wait_for_waiting(locker, 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(service), 2)
        with pytest.raises(AssertionError):  # nothing shows that it would end
            wait_for(lambda: service.process.poll() is not None, 3)
    assert calls.join() == [201]
    assert service.process.wait(10) == 0


@pytest.mark.slow
def test_an_export_with_no_framing_that_is_cut_is_reset(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url)
    with connect(service) as reader, psycopg.connect(bulk_url, autocommit=True) as connection:
        reader.sendall(b"GET /messages/ HTTP/1.0\r\nx-api-key: " + KEY.encode() + b"\r\n\r\n")
        assert reader.recv(1000)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE '%COPY (%' AND pid <> pg_backend_pid() AND datname = current_database()"
        )
        with pytest.raises(ConnectionResetError):
            while reader.recv(MIB):
                pass


@pytest.mark.slow
def test_a_killed_worker_is_replaced(make_database: Callable[[], str], make_service: Callable[..., Service]) -> None:
    service = make_service(make_database())
    killed, other = wait_for(lambda: len(service.workers()) == 2 and service.workers())
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(service.workers()) == 2 and killed not in service.workers())
    assert other in service.workers()
    for _ in range(20):
        response = requests.post(f"{service.url}/messages/", json=new_message(), headers={"x-api-key": KEY}, timeout=10)
        assert response.status_code == 201


@pytest.mark.slow
def test_workers_end_with_a_killed_master(
    make_database: Callable[[], str], make_service: Callable[..., Service], folder: Path
) -> None:
    database_url = make_database()
    killed = make_service(database_url)
    workers = [psutil.Process(pid) for pid in killed.workers()]
    killed.process.kill()
    killed.process.wait()
    wait_for(lambda: is_refused(killed), 1, "the end of listening")
    psutil.wait_procs(workers, 5)
    assert not any(one.is_running() for one in workers)
    assert make_service(database_url, PORT=killed.port).get("/ready").status_code == 200


@pytest.mark.parametrize("module", ["persistence", "chat"])
def test_a_taken_port_is_one_clear_line(persistence: Service, folder: Path, module: str) -> None:
    settings = {"PORT": persistence.port, "API_KEY": KEY, "DATABASE_URL": "host=127.0.0.1"}
    service = Service(module, folder, wait=False, **settings)
    assert service.process.wait(10) == 1
    lines = service.text().splitlines()
    assert len(lines) == 1
    assert lines[0] == f"{module}: PORT: can't listen on 127.0.0.1:{persistence.port}: Address already in use"


def test_health_and_ready_answer_while_all_other_threads_are_taken(
    make_database: Callable[[], str], make_service: Callable[..., Service]
) -> None:
    database_url = make_database()
    service = make_service(database_url, WEB_CONCURRENCY=1, THREADS=4)
    calls = Calls()
    with locked_messages(database_url) as connection:
        calls.start(service, 8)
        wait_for_waiting(connection, 4)
        for path in ("/health", "/ready"):
            began = time.monotonic()
            assert requests.get(service.url + path, timeout=5).status_code == 200
            assert time.monotonic() - began < 1
    assert calls.join() == [201] * 8


@pytest.mark.slow
def test_exports_beyond_the_places_are_turned_down(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url, WEB_CONCURRENCY=1, THREADS=4)
    exports = [service.get("/messages/", stream=True) for _ in range(2)]
    refused = service.get("/messages/")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert service.post("/messages/", json=new_message()).status_code == 201
    exports[0].close()
    wait_for(lambda: service.get("/messages/", stream=True).status_code == 200, what="a place")
    exports[1].close()


@pytest.mark.slow
def test_an_export_takes_little_memory(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url, WEB_CONCURRENCY=1)
    memory = psutil.Process(service.workers()[0]).memory_info
    before = most = memory().rss
    received = 0
    for piece in service.get("/messages/", stream=True).iter_content(MIB):
        received += len(piece)
        most = max(most, memory().rss)
    assert received > 60_000_000
    assert most - before < 20_000_000


@pytest.mark.slow
def test_an_exports_log_line_is_written_at_its_end(bulk_url: str, make_service: Callable[..., Service]) -> None:
    service = make_service(bulk_url)
    request_id = f"export-{uuid.uuid4()}"
    began = time.monotonic()
    response = service.get("/messages/", stream=True, headers={"X-Request-ID": request_id})
    assert response.headers["X-Request-ID"] == request_id
    service.get("/health", headers={"X-Request-ID": "meanwhile"})
    service.log("meanwhile")
    assert request_id not in service.text()
    seconds = time.monotonic() - began
    assert response.content
    line = service.log(request_id)
    assert line["duration_ms"] >= seconds * 1000
    assert (line["method"], line["path"], line["status"]) == ("GET", "/messages/", 200)


def test_a_file_has_a_log_line_too(persistence: Service) -> None:
    request_id = str(uuid.uuid4())
    response = persistence.get("/docs/swagger-ui-bundle.js", headers={"X-Request-ID": request_id})
    assert len(response.content) == int(response.headers["Content-Length"])
    assert persistence.log(request_id)["status"] == 200


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """A connection's two ends: the server's, and a reader's with a small buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with ClientSocket(fileno=accepted.detach()) as server:
            server.setblocking(False)
            yield server, reader


def test_a_reader_that_takes_nothing_is_cut_off(
    pair: tuple[ClientSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_connection, "STALL_SECONDS", 1)
    with pytest.raises(TimeoutError):
        pair[0].sendall(b"x" * 20 * MIB)


@pytest.mark.slow
def test_a_reader_that_takes_a_little_is_waited_for(
    pair: tuple[ClientSocket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_connection, "STALL_SECONDS", 2)
    server, reader = pair
    failures: list[BaseException] = []

    def send() -> None:
        try:
            server.sendall(b"x" * 20 * MIB)
        except OSError as exc:
            failures.append(exc)

    sender = threading.Thread(target=send)
    sender.start()
    until = time.monotonic() + 6
    while time.monotonic() < until:
        reader.recv(20_000)
        time.sleep(0.1)  # a slow reader
    assert failures == []
    assert sender.is_alive()
    reset(reader)
    sender.join()
