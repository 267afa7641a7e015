"""Full houses answer, exports are bounded, and readers may be slow, but not stand still."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import psycopg
import pytest
import requests

from tests.load import locked_messages
from tests.messages import new_message
from tests.services import KEY, Service, seconds_of, wait_for

DB_CONNECTIONS = 4
NARROW = {"API_KEY": KEY, "WEB_CONCURRENCY": 1, "DB_CONNECTIONS": DB_CONNECTIONS}
COPIES = "query LIKE '%COPY (%' AND pid <> pg_backend_pid() AND datname = current_database()"


@pytest.fixture
def own_url(make_database: Callable[[], str]) -> str:
    return make_database()


@pytest.fixture
def narrow(make_service: Callable[..., Service], own_url: str) -> Service:
    """A service of one worker with four connections to its own database."""
    return make_service("persistence", DATABASE_URL=own_url, **NARROW)


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


@pytest.fixture
def bulk(make_service: Callable[..., Service], bulk_url: str) -> Service:
    return make_service("persistence", DATABASE_URL=bulk_url, **NARROW)


def post_message(service: Service) -> int:
    """Post on a connection of one's own, for use in threads."""
    headers = {"x-api-key": KEY}
    return requests.post(f"{service.url}/messages/", json=new_message(), headers=headers, timeout=60).status_code


def check_health(service: Service, seconds: float) -> None:
    for path in ("/health", "/ready"):
        status, taken = seconds_of(lambda path=path: requests.get(service.url + path, timeout=30))  # type: ignore[misc]
        assert (status, taken < seconds) == (200, True), (path, taken)


def test_health_and_ready_answer_while_every_connection_is_taken(narrow: Service, own_url: str) -> None:
    with ThreadPoolExecutor() as pool:
        with locked_messages(own_url) as waiting:
            calls = [pool.submit(post_message, narrow) for _ in range(2 * DB_CONNECTIONS)]
            wait_for(lambda: waiting() == DB_CONNECTIONS)
            check_health(narrow, 1.5)
            assert waiting() == DB_CONNECTIONS
        assert {call.result() for call in calls} <= {201, 503}


@pytest.mark.slow
def test_exports_beyond_the_places_are_turned_down_while_others_are_served(bulk: Service) -> None:
    exports = [bulk.get("/messages/", stream=True) for _ in range(DB_CONNECTIONS // 2)]
    refused = bulk.get("/messages/")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert post_message(bulk) == 201
    check_health(bulk, 1.5)
    exports[0].close()
    wait_for(lambda: bulk.get("/messages/", stream=True).status_code == 200, what="a place")
    exports[1].close()


@pytest.mark.slow
def test_an_export_takes_little_memory_and_its_log_line_comes_at_the_end(bulk: Service) -> None:
    memory = psutil.Process(bulk.workers()[0]).memory_info
    before = most = memory().rss
    received, began = 0, time.monotonic()
    for piece in bulk.get("/messages/", stream=True, headers={"X-Request-ID": "export"}).iter_content(1_000_000):
        assert received or '"export"' not in bulk.text()
        received += len(piece)
        most = max(most, memory().rss)
    assert bulk.log("export")["duration_ms"] > (time.monotonic() - began) * 500
    assert received > 60_000_000
    assert most - before < 20_000_000


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_an_export_is_cut_without_a_proper_end_if_the_database_fails(
    bulk: Service, bulk_url: str, protocol: str
) -> None:
    received = b""
    with bulk.connect() as reader, psycopg.connect(bulk_url, autocommit=True) as connection:
        reader.sendall(f"GET /messages/ {protocol}\r\nHost: x\r\nx-api-key: {KEY}\r\n\r\n".encode())
        assert reader.recv(1000)
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {COPIES}")
        try:
            while data := reader.recv(1_000_000):
                received = received[-100:] + data
        except ConnectionResetError:
            return
    assert protocol == "HTTP/1.1"  # or it could pass for the whole
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_cut_off_and_a_slow_one_is_spared(bulk: Service) -> None:
    with socket.socket() as stalled, socket.socket() as slow:
        for reader, name in ((stalled, "stalled"), (slow, "slow")):
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            reader.connect(("127.0.0.1", bulk.port))
            head = f"GET /messages/ HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\nx-api-key: {KEY}\r\n\r\n"
            reader.sendall(head.encode())
        began = time.monotonic()
        while '"stalled"' not in bulk.text() and time.monotonic() < began + 120:
            assert slow.recv(20_000)
            time.sleep(0.1)  # this is what makes it slow
        assert 50 < time.monotonic() - began < 100
        assert slow.recv(20_000)
        assert '"slow"' not in bulk.text()
