"""Full houses are fair, faults leave nothing behind, nobody waits for slow clients, and a killed worker is replaced."""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.chats import new_turn, running
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id, new_message
from tests.proxy import Proxy
from tests.services import KEY, Service, receive, wait_for

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
HEADERS = {"x-api-key": KEY, "Content-Type": "application/json"}
THREADS = 8
ONE_WORKER = {"API_KEY": KEY, "WEB_CONCURRENCY": 1, "THREADS": THREADS}


class Client:
    """Stores messages one after another on one connection, each until it is acknowledged or all is to end."""

    def __init__(self, port: int, ending: threading.Event) -> None:
        self.ending = ending
        self.connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.connect()
        self.port: int = self.connection.sock.getsockname()[1]
        self.chat_id = new_id()
        self.statuses: set[int] = set()
        self.stored: list[str] = []
        self.losses = 0  # of connections

    def store(self) -> None:
        message = new_message(message_id=new_id(), chat_id=self.chat_id)
        while not self.ending.is_set():
            if self.send(json.dumps(message)) in (200, 201):
                self.stored.append(message["message_id"])
                return

    def send(self, body: str) -> int:
        try:
            self.connection.request("POST", "/messages/", body, HEADERS)
            response = self.connection.getresponse()
            response.read()
        except (OSError, HTTPException):
            self.losses += 1
            self.connection.close()  # the next request makes another
            return 0
        self.statuses.add(response.status)
        return response.status


class Clients:
    """So many clients, all connected, then all at work, until `goal` messages are stored or the block ends."""

    def __init__(self, service: Service, count: int, goal: float = float("inf")) -> None:
        self.goal = goal
        self.ending = threading.Event()
        self.all = [Client(service.port, self.ending) for _ in range(count)]
        self.threads = [threading.Thread(target=self.run, args=(client,)) for client in self.all]
        self.start = threading.Barrier(count)

    def run(self, client: Client) -> None:
        self.start.wait()
        while not self.ending.is_set() and self.count() < self.goal:
            client.store()
        client.connection.close()

    def count(self) -> int:
        return sum(len(client.stored) for client in self.all)

    def wait_for_more(self, count: int) -> None:
        goal = self.count() + count
        wait_for(lambda: self.count() >= goal, 30, f"{count} more messages")

    def join(self) -> None:
        for thread in self.threads:
            thread.join()

    def __enter__(self) -> "Clients":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: object, _traceback: TracebackType | None) -> None:
        self.ending.set()
        self.join()


def only_worker(service: Service) -> psutil.Process:
    (pid,) = service.workers()
    return psutil.Process(pid)


@pytest.fixture
def own_database(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def narrow(own_database: str, folder: Path) -> Iterator[Service]:
    """A service that answers 8 requests at a time."""
    with running("persistence", folder, DATABASE_URL=own_database, **ONE_WORKER) as service:
        yield service


def test_many_clients_of_few_threads_get_equal_shares_and_cost_no_memory(narrow: Service) -> None:
    before = only_worker(narrow).memory_info().rss
    with Clients(narrow, 200, goal=4000) as clients:
        clients.join()
    counts = [len(client.stored) for client in clients.all]
    assert {status for client in clients.all for status in client.statuses} == {201}
    assert sum(client.losses for client in clients.all) == 0
    assert min(counts) >= sum(counts) / len(counts) / 3
    assert only_worker(narrow).memory_info().rss - before < 40 * MIB


class Usage(NamedTuple):
    """What a worker holds."""

    threads: int
    descriptors: int
    connections: int  # to the database

    def is_within(self, other: "Usage") -> bool:
        return all(mine <= its for mine, its in zip(self, other, strict=True))


CONNECTIONS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'persistence'"


def count_of(database: psycopg.Connection[Any], condition: str = "") -> int:
    (count,) = database.execute(f"SELECT count(*) {CONNECTIONS} {condition}").fetchone() or (0,)
    return int(count)


def usage_of(service: Service, database: psycopg.Connection[Any]) -> Usage:
    worker = only_worker(service)
    return Usage(worker.num_threads(), worker.num_fds(), count_of(database))


def usage_of_full_house(service: Service, database_url: str, most: Usage | None = None) -> Usage:
    """Give what the worker holds while each of its threads waits for the database; wait until it is within `most`."""
    # two connections, since a transaction sees no change of activity
    with psycopg.connect(database_url) as blocker, psycopg.connect(database_url, autocommit=True) as database:
        blocker.execute("LOCK TABLE messages IN SHARE MODE")  # it can be read, but nothing is stored
        wait_for(lambda: count_of(database, "AND wait_event_type = 'Lock'") == THREADS, what="a full house")
        usage = usage_of(service, database)
        wait_for(lambda: most is None or usage_of(service, database).is_within(most), 5, f"{most} at most, not {usage}")
        return usage


def check_that_nothing_is_left(service: Service, database_url: str, fault: Callable[[], None], times: int) -> None:
    """Expect a full house to take no more, after faults under load, than one did before."""
    with Clients(service, 2 * THREADS) as clients:
        clients.wait_for_more(200)  # until the service has grown
        most = usage_of_full_house(service, database_url)
        for _ in range(times):
            fault()
            clients.wait_for_more(10)
        usage_of_full_house(service, database_url, most)
    assert {status for client in clients.all for status in client.statuses} <= {200, 201, 503}
    assert sum(client.losses for client in clients.all) == 0


def test_connections_that_were_ended_leave_nothing_behind(narrow: Service, own_database: str) -> None:
    def end_all() -> None:
        with psycopg.connect(own_database) as database:
            database.execute(f"SELECT pg_terminate_backend(pid) {CONNECTIONS}")

    check_that_nothing_is_left(narrow, own_database, end_all, 30)


def test_connections_that_were_reset_leave_nothing_behind(own_database: str, folder: Path) -> None:
    given = conninfo_to_dict(own_database)
    host, port = str(given["host"]), int(given.get("port") or 5432)
    proxy = Proxy(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port))
    through = make_conninfo(own_database, host="127.0.0.1", port=proxy.port)
    try:
        with running("persistence", folder, DATABASE_URL=through, **ONE_WORKER) as service:
            check_that_nothing_is_left(service, own_database, proxy.cut, 10)
    finally:
        proxy.close()


class SlowClients:
    """Clients that send the first bytes of a request at once, and of the others one a second."""

    def __init__(self, service: Service, request: bytes, at_once: int) -> None:
        self.request = request
        self.sent = at_once
        self.ending = threading.Event()
        self.connections = [socket.create_connection(("127.0.0.1", service.port), timeout=10) for _ in range(50)]
        for connection in self.connections:
            connection.sendall(request[:at_once])
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ending.wait(1):
            for connection in self.connections:
                connection.sendall(self.request[self.sent : self.sent + 1])
            self.sent += 1

    def finish(self) -> set[bytes]:
        """Send what is left, and give the statuses of the answers."""
        for connection in self.connections:
            connection.sendall(self.request[self.sent :])
        return {receive(connection).split()[1] for connection in self.connections}

    def __enter__(self) -> "SlowClients":
        self.thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: object, _traceback: TracebackType | None) -> None:
        self.end()
        for connection in self.connections:
            connection.close()

    def end(self) -> None:
        self.ending.set()
        self.thread.join()


@pytest.fixture
def narrow_chat(chat_settings: dict[str, Any], model: FakeOpenAI, folder: Path) -> Iterator[Service]:
    """A chat service of 8 threads, 4 of them for turns."""
    own = {"WEB_CONCURRENCY": 1, "THREADS": THREADS, "OPENAI_TIMEOUT": 30}
    with running("chat", folder, **(chat_settings | own)) as service:
        yield service


@pytest.mark.parametrize("slow_part", ["head", "body"])
@pytest.mark.parametrize(("name", "path"), [("narrow", "/messages/"), ("narrow_chat", "/chat")])
def test_nobody_waits_for_fifty_slow_clients(
    request: pytest.FixtureRequest, name: str, path: str, slow_part: str
) -> None:
    service: Service = request.getfixturevalue(name)

    def new_body() -> dict[str, Any]:
        return new_message() if name == "narrow" else new_turn("hello")

    body = json.dumps(new_body()).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(f"{key}: {value}" for key, value in HEADERS.items())]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    with SlowClients(service, head + body, 1 if slow_part == "head" else len(head) + 1) as slow:
        begun, longest = slow.sent, 0.0
        while slow.sent < begun + 4:
            began = time.monotonic()
            assert service.post(path, json=new_body()).ok
            longest = max(longest, time.monotonic() - began)
        slow.end()
        assert longest < 2
        assert select.select(slow.connections, [], [], 0)[0] == []  # they are waited for
        assert slow.finish() <= {b"200", b"201", b"503"}


def ports_served_by(pid: int, service: Service) -> set[int]:
    """Give the clients' ports of a worker's connections."""
    connections = psutil.Process(pid).net_connections("tcp")
    return {one.raddr.port for one in connections if one.laddr.port == service.port and one.raddr}


def new_listener(service: Service, old: list[int]) -> bool:
    """Tell whether a worker that is none of the old ones listens."""
    return any(
        one.laddr.port == service.port and one.status == psutil.CONN_LISTEN
        for pid in service.workers()
        if pid not in old
        for one in psutil.Process(pid).net_connections("tcp")
    )


def test_only_the_clients_of_a_killed_worker_notice_its_end(own_database: str, folder: Path) -> None:
    with running("persistence", folder, DATABASE_URL=own_database, API_KEY=KEY) as service:
        old = wait_for(lambda: len(service.workers()) == 2 and service.workers())
        with Clients(service, 8) as clients:
            clients.wait_for_more(50)
            killed = max(old, key=lambda pid: len(ports_served_by(pid, service)))
            lost = ports_served_by(killed, service)
            before = {client: len(client.stored) for client in clients.all}
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: new_listener(service, old), 5, "a new worker")
            wait_for(lambda: all(len(client.stored) > count + 5 for client, count in before.items()))
        assert {client.losses for client in clients.all if client.port not in lost} <= {0}
        assert {status for client in clients.all for status in client.statuses} <= {200, 201}
        stored = {message["message_id"] for message in service.get("/messages/").json()}
        assert {message_id for client in clients.all for message_id in client.stored} <= stored
