"""The connections to PostgreSQL: what passes by itself and what does not; none is left at work or lent twice."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import gevent
import psycopg
import pytest
import requests

from persistence import deadline
from persistence.database import Database
from tests.chats import running
from tests.load import locked_messages
from tests.messages import assert_error, new_id, new_message, store
from tests.services import KEY, Service, wait_for

WORKERS, CONNECTIONS = 2, 4
SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'persistence'"

Admin = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture(scope="module")
def service(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over a database of its own, which each test leaves as it was."""
    settings = {"DATABASE_URL": url, "API_KEY": KEY, "WEB_CONCURRENCY": WORKERS, "DB_CONNECTIONS": CONNECTIONS}
    with running("persistence", tmp_path_factory.mktemp("database"), **settings) as service:
        yield service


@pytest.fixture
def admin(url: str, service: Service) -> Iterator[Admin]:
    """Another client of the same database, once the service is ready."""
    wait_for(service.is_up, 30)
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@contextmanager
def before_each_insert(admin: Admin, body: str) -> Iterator[None]:
    """Let the database do something before each insert."""
    admin.execute(f"CREATE FUNCTION disturb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$")
    admin.execute("CREATE TRIGGER disturb BEFORE INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION disturb()")
    try:
        yield
    finally:
        admin.execute("DROP FUNCTION disturb CASCADE")


def at_work(admin: Admin) -> list[Any]:
    """Return what the service's connections are doing."""
    return admin.execute(f"SELECT query {SESSIONS} AND state <> 'idle'").fetchall()


def assert_each_gets_its_own(service: Service, admin: Admin) -> None:
    """Expect that no connection is lent twice, and that there are no more than there may be."""
    messages = [store(service, content=f"{number}") for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        answers = pool.map(lambda message: service.get(f"/messages/{message['message_id']}").json(), messages)
        assert list(answers) == messages
    assert len(admin.execute(f"SELECT pid {SESSIONS}").fetchall()) <= WORKERS * (CONNECTIONS + 1)


def test_a_mistake_in_our_sql_is_a_500_whose_cause_is_in_the_log(service: Service, admin: Admin) -> None:
    admin.execute("ALTER TABLE messages RENAME COLUMN role TO part")
    try:
        response = service.post("/messages/", json=new_message())
    finally:
        admin.execute("ALTER TABLE messages RENAME COLUMN part TO role")
    assert_error(response, 500)
    assert "Retry-After" not in response.headers
    cause = next(line for line in service.text().splitlines() if "UndefinedColumn 42703" in line)
    assert response.headers["X-Request-ID"] in cause
    assert_each_gets_its_own(service, admin)


def test_nobody_notices_that_old_connections_are_of_a_standby(service: Service, admin: Admin) -> None:
    """After a failover, the connections to what was the primary say so at each write."""
    assert_each_gets_its_own(service, admin)
    old = [pid for (pid,) in admin.execute(f"SELECT pid {SESSIONS}")]
    is_old = f"pg_backend_pid() = ANY (ARRAY{old})"
    with before_each_insert(admin, f"IF {is_old} THEN RAISE read_only_sql_transaction; END IF"):
        assert_each_gets_its_own(service, admin)


@pytest.mark.slow
def test_what_is_given_up_is_not_done_later(service: Service, admin: Admin, url: str) -> None:
    messages = [store(service, chat_id=chat_id) for chat_id in [new_id()] * 2]
    chat, one = f"/chats/{messages[0]['chat_id']}", f"/messages/{messages[0]['message_id']}"

    def call(method: str, path: str) -> float:
        began, body = time.monotonic(), new_message() if method == "POST" else {"rating": True}
        response = requests.request(method, service.url + path, json=body, headers={"x-api-key": KEY}, timeout=30)
        assert_error(response, 503)
        assert response.headers["Retry-After"]
        return time.monotonic() - began

    with locked_messages(url), ThreadPoolExecutor(6) as pool:
        calls = ["DELETE", "DELETE", "GET", "PUT", "POST", "GET"], [chat, one, one, one, "/messages/", "/messages/"]
        assert max(pool.map(call, *calls)) < 10.5
        wait_for(lambda: not at_work(admin), 2)
    with before_each_insert(admin, "PERFORM pg_sleep(30)"):
        assert call("POST", "/messages/") < 10.5
        wait_for(lambda: not at_work(admin), 2)
    assert service.get("/messages/", params={"chat_id": messages[0]["chat_id"]}).json() == messages
    assert_each_gets_its_own(service, admin)


@pytest.mark.parametrize("end", ["the clients", pytest.param("the workers", marks=pytest.mark.slow)])
def test_no_connection_is_left_at_work(service: Service, admin: Admin, url: str, end: str) -> None:
    with locked_messages(url):
        clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(20)]
        for client in clients:
            client.sendall(f"GET /messages/{new_id()} HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n\r\n".encode())
        wait_for(lambda: len(at_work(admin)) > CONNECTIONS, 30)
        for pid in service.workers() if end == "the workers" else []:
            os.kill(pid, signal.SIGKILL)
        for client in clients:
            client.close()
    wait_for(lambda: not at_work(admin), 30)
    wait_for(service.is_up, 30)
    assert_each_gets_its_own(service, admin)


@pytest.mark.parametrize("cut", [psycopg.OperationalError, gevent.Timeout])
def test_a_connection_whose_statement_was_cut_is_lent_to_nobody(
    admin: Admin, url: str, cut: type[BaseException]
) -> None:
    with closing(Database(url, None, 2)) as database:
        database.open()
        with locked_messages(url), pytest.raises(cut), gevent.Timeout(0.3 if cut is gevent.Timeout else 30):
            deadline.begin(0.3 if cut is psycopg.OperationalError else 30)
            database.run("SELECT 1 FROM messages")
        deadline.begin()
        with ThreadPoolExecutor(8) as pool:
            rows = pool.map(lambda number: database.run("SELECT %(number)s::int", {"number": number}), range(50))
            assert [row for ((row,),) in rows] == list(range(50))
        wait_for(lambda: not at_work(admin))
