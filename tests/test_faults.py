"""What becomes of the persistence service when its database fails: nothing is lost, and it comes back by itself."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
import pytest
import requests
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from persistence import queries
from persistence.embedded import EmbeddedPostgres
from persistence.migrate import apply_schema
from tests.proxy import Proxy
from tests.services import KEY, Service, wait_for


class Postgres:
    """A PostgreSQL of this file's own, which its tests may stop and kill; it is started again when it ends."""

    def __init__(self, folder: Path) -> None:
        self.embedded = EmbeddedPostgres(folder)
        self.conninfo = self.embedded.start()

    def make_database(self) -> str:
        name = f"test_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return make_conninfo(self.conninfo, dbname=name)

    def connect(self, conninfo: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo or self.conninfo, autocommit=True, connect_timeout=2)

    def processes(self) -> list[psutil.Process]:
        assert self.embedded._process is not None
        postmaster = psutil.Process(self.embedded._process.pid)
        return [postmaster, *postmaster.children()]

    def end(self, end_signal: signal.Signals) -> None:
        """End it, and wait until it is there again."""
        ended = self.processes()[0]
        ended.send_signal(end_signal)
        wait_for(lambda: not ended.is_running(), what="the end")
        wait_for(self.answers, 30, "the database's return")

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all of it as a debugger does: its sockets stay open and say nothing."""
        processes = self.processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()


class Load:
    """Clients that store messages one after another, each as often as it takes, and note what they are told."""

    def __init__(self, service: Service, clients: int = 4) -> None:
        self.service = service
        self.ending = threading.Event()
        self.acknowledged: list[str] = []
        self.answers: list[tuple[int, str | None, float]] = []
        self.problems: list[str] = []
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]

    def run(self) -> None:
        with requests.Session() as session:
            session.headers["x-api-key"] = KEY
            chat_id = str(uuid.uuid4())
            while not self.ending.is_set():
                message_id = str(uuid.uuid4())
                message = {"message_id": message_id, "chat_id": chat_id, "content": message_id, "role": "human"}
                while self.send(session, message) == 503 and not self.ending.wait(0.05):
                    pass

    def send(self, session: requests.Session, message: dict[str, str]) -> int:
        began = time.monotonic()
        try:
            response = session.post(f"{self.service.url}/messages/", json=message, timeout=30)
        except requests.RequestException as exc:
            self.problems.append(str(exc))
            return 0
        status = response.status_code
        self.answers.append((status, response.headers.get("Retry-After"), time.monotonic() - began))
        if status in (200, 201):
            self.acknowledged.append(message["message_id"])
        return status

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until so many more messages are acknowledged."""
        goal = len(self.acknowledged) + count
        wait_for(lambda: len(self.acknowledged) >= goal, what=f"{count} more messages")

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: object, _traceback: TracebackType | None) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def statuses(self) -> set[int]:
        return {status for status, _, _ in self.answers}

    def check(self) -> None:
        """Each acknowledged message is there once, and each caller was told what the contract says, in time."""
        stored = [message["content"] for message in self.service.get("/messages/").json()]
        assert len(stored) == len(set(stored))
        assert set(self.acknowledged) <= set(stored)
        assert self.problems == []
        assert self.statuses() <= {200, 201, 503}
        assert all(retry_after for status, retry_after, _ in self.answers if status == 503)
        assert max(seconds for _, _, seconds in self.answers) <= 10


def new_message() -> dict[str, str]:
    return {"chat_id": str(uuid.uuid4()), "content": "hello", "role": "human"}


def stores(service: Service) -> bool:
    return service.post("/messages/", json=new_message()).status_code == 201


def seconds_of(call: Callable[[], requests.Response]) -> tuple[int, float]:
    began = time.monotonic()
    return call().status_code, time.monotonic() - began


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("faults"))
    yield server
    server.embedded.stop()


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.make_database()


@pytest.fixture
def service(database: str, folder: Path) -> Iterator[Service]:
    started = Service("persistence", folder, DATABASE_URL=database, API_KEY=KEY)
    yield started
    started.stop()


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    host = conninfo_to_dict(postgres.conninfo)["host"]
    started = Proxy(f"{host}/.s.PGSQL.5432")
    yield started
    started.close()


@pytest.fixture
def far_service(database: str, proxy: Proxy, folder: Path) -> Iterator[Service]:
    """A service whose database is behind the proxy."""
    started = Service("persistence", folder, DATABASE_URL=through(database, proxy), API_KEY=KEY)
    yield started
    started.stop()


def through(database: str, proxy: Proxy) -> str:
    return make_conninfo(database, host="127.0.0.1", port=proxy.port)


@pytest.mark.parametrize("end_signal", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
def test_a_database_that_ends_and_returns(postgres: Postgres, service: Service, end_signal: signal.Signals) -> None:
    with Load(service) as load:
        postgres.end(end_signal)
        wait_for(lambda: stores(service), 5, "the service's return")
        load.wait_for_more()
    load.check()


def test_nobody_notices_that_connections_were_ended(postgres: Postgres, service: Service) -> None:
    with Load(service) as load:
        for _ in range(3):
            with postgres.connect() as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'persistence'"
                )
            load.wait_for_more()
    load.check()
    assert load.statuses() <= {200, 201}


@pytest.mark.slow
def test_nobody_notices_that_the_network_reset_connections(far_service: Service, proxy: Proxy) -> None:
    with Load(far_service) as load:
        proxy.cut()
        load.wait_for_more()
    load.check()
    assert load.statuses() <= {200, 201}


@pytest.mark.slow
def test_a_database_that_says_nothing(postgres: Postgres, service: Service) -> None:
    with Load(service) as load:
        with postgres.stopped():
            for path, status, limit in (("/ready", 503, 1.2), ("/health", 200, 1), ("/messages/", 503, 10)):
                answered, seconds = seconds_of(lambda path=path: service.get(path))  # type: ignore[misc]
                assert (answered, seconds < limit) == (status, True), (path, seconds)
        wait_for(lambda: stores(service), 5, "the service's return")
        assert service.get("/ready").status_code == 200
        load.wait_for_more()
    load.check()


@pytest.mark.slow
def test_many_ask_whether_a_silent_database_is_ready(postgres: Postgres, service: Service) -> None:
    answers: list[tuple[int, float]] = []
    health: list[tuple[int, float]] = []
    with postgres.stopped():
        threads = [
            threading.Thread(
                target=lambda: answers.append(seconds_of(lambda: requests.get(f"{service.url}/ready", timeout=9)))
            )
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        health += [seconds_of(lambda: requests.get(f"{service.url}/health", timeout=9)) for _ in range(4)]
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {503}
    assert max(seconds for _, seconds in answers) < 1.5
    assert {status for status, _ in health} == {200}
    assert max(seconds for _, seconds in health) < 0.5


@pytest.mark.slow
def test_a_network_that_swallows(far_service: Service, proxy: Proxy) -> None:
    with Load(far_service) as load:
        proxy.swallows = True
        answered, seconds = seconds_of(lambda: far_service.post("/messages/", json=new_message()))
        assert (answered, seconds <= 10) == (503, True)
        assert seconds_of(lambda: far_service.get("/ready"))[0] == 503
        proxy.swallows = False
        wait_for(lambda: stores(far_service), 5, "the service's return")
        load.wait_for_more()
    load.check()


@pytest.fixture
def starting_service(database: str, proxy: Proxy, folder: Path) -> Iterator[Service]:
    started = Service("persistence", folder, wait=False, DATABASE_URL=through(database, proxy), API_KEY=KEY)
    yield started
    started.stop()


@pytest.mark.slow
def test_a_network_that_swallows_the_look_at_the_schema(
    postgres: Postgres, database: str, proxy: Proxy, starting_service: Service
) -> None:
    with postgres.connect(database) as other, other.transaction():
        other.execute(queries.get("lock_schema"))
        wait_for(lambda: len(proxy.links) >= 4, what="two workers, each with a connection in its pool and one to look")
        time.sleep(0.5)  # until they look, which nobody can see
        proxy.swallows = True
    wait_for(lambda: sum(link.dead for link in proxy.links) >= 2, what="the loss")
    proxy.swallows = False
    wait_for(lambda: all(starting_service.is_up() for _ in range(20)), 5, "the service's return")


@pytest.mark.slow
def test_the_lock_of_a_look_whose_client_has_gone(postgres: Postgres, database: str, folder: Path) -> None:
    with postgres.connect(database) as gone, gone.transaction():
        assert apply_schema(gone)  # and then not a word, with the lock held
        service = Service("persistence", folder, DATABASE_URL=database, API_KEY=KEY)
        service.stop()
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            gone.execute("SELECT 1")


@pytest.mark.slow
def test_connections_that_rested_and_died_unnoticed(far_service: Service, proxy: Proxy) -> None:
    with Load(far_service, clients=16):
        pass  # so that the pools have grown
    time.sleep(1.1)  # rest is what this is about
    for link in proxy.links:
        link.dead = True
    for _ in range(8):
        answered, seconds = seconds_of(lambda: far_service.post("/messages/", json=new_message()))
        assert (answered, seconds < 5) == (201, True)


@pytest.mark.slow
def test_an_export_is_cut_when_the_database_ends(postgres: Postgres, service: Service, database: str) -> None:
    with postgres.connect(database) as connection:
        connection.execute(
            """
            INSERT INTO messages (message_id, chat_id, content, sent_at, role)
            SELECT gen_random_uuid(), gen_random_uuid(), repeat('x', 10000), now(), 'ai' FROM generate_series(1, 3000)
            """
        )
        response = service.get("/messages/", stream=True)
        body = response.iter_content(65536)
        next(body)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%COPY (%'"
            " AND pid <> pg_backend_pid()"
        )
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        for _ in body:
            pass


@pytest.mark.slow
def test_connection_slots_used_up_by_others(postgres: Postgres, service: Service, database: str, folder: Path) -> None:
    others: list[psycopg.Connection[Any]] = []
    with pytest.raises(psycopg.OperationalError, match="too many clients"):
        others.extend(postgres.connect() for _ in range(1000))
    late = Service("persistence", folder, wait=False, DATABASE_URL=database, API_KEY=KEY)
    try:
        wait_for(lambda: requests.get(f"{late.url}/health", timeout=5).status_code == 200)
        response = late.post("/messages/", json=new_message())
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert late.get("/ready").status_code == 503
        assert stores(service)  # it has what it needs
        for other in others:
            other.close()
        wait_for(lambda: stores(late), 5, "the service's return")
    finally:
        late.stop()


def test_a_full_disk(postgres: Postgres, service: Service, database: str) -> None:
    kept = service.post("/messages/", json=new_message()).json()
    with postgres.connect(database) as connection:
        connection.execute(
            """
            CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$
            """
        )
        connection.execute("CREATE TRIGGER full_disk BEFORE INSERT ON messages EXECUTE FUNCTION fill()")
        response = service.post("/messages/", json=new_message())
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert "extend" not in response.text
        assert service.get(f"/messages/{kept['message_id']}").json() == kept
        connection.execute("DROP TRIGGER full_disk ON messages")
    assert stores(service)


@pytest.mark.slow
def test_a_database_that_is_down_at_the_start_is_waited_for(database: str, proxy: Proxy, folder: Path) -> None:
    target, proxy.target = proxy.target, str(folder / "nobody")
    service = Service("persistence", folder, wait=False, DATABASE_URL=through(database, proxy), API_KEY=KEY)
    try:
        wait_for(lambda: requests.get(f"{service.url}/health", timeout=5).status_code == 200)
        assert service.get("/ready").status_code == 503
        proxy.target = target
        wait_for(lambda: stores(service), 5, "the service's return")
    finally:
        service.stop()


@pytest.mark.slow
def test_services_that_start_at_once_on_an_empty_database(database: str, folder: Path) -> None:
    services = [
        Service("persistence", folder, wait=False, DATABASE_URL=database, API_KEY=KEY, WEB_CONCURRENCY=4)
        for _ in range(2)
    ]
    try:
        for service in services:
            wait_for(service.is_up)
        message = services[0].post("/messages/", json=new_message()).json()
        assert services[1].get(f"/messages/{message['message_id']}").json() == message
        assert sum(service.text().count("Applied 001") for service in services) == 1
    finally:
        for service in services:
            service.stop()


@pytest.mark.slow
def test_more_clients_than_connections(database: str, folder: Path) -> None:
    service = Service("persistence", folder, DATABASE_URL=database, API_KEY=KEY, WEB_CONCURRENCY=1, THREADS=8)
    try:
        with Load(service, clients=200) as load:
            load.wait_for_more(400)
        load.check()
        assert load.statuses() == {201}
    finally:
        service.stop()


@pytest.mark.slow
def test_the_stop_of_a_service_whose_database_is_silent(postgres: Postgres, database: str, folder: Path) -> None:
    service = Service("persistence", folder, DATABASE_URL=database, API_KEY=KEY)
    with postgres.stopped():
        os.kill(service.process.pid, signal.SIGTERM)
        assert service.process.wait(10) == 0
