"""What becomes of the services when the database fails: nothing is lost, and they come back by themselves."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import requests
from psycopg.conninfo import make_conninfo

from persistence import queries
from tests.load import Load
from tests.messages import new_message, store
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.services import KEY, Service, seconds_of, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("faults"))
    yield server
    server.stop()


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.make_database()


@pytest.fixture
def service(make_service: Callable[..., Service], database: str) -> Service:
    return make_service("persistence", DATABASE_URL=database, API_KEY=KEY)


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    started = Proxy(postgres.socket)
    yield started
    started.close()


@pytest.fixture
def far_database(database: str, proxy: Proxy) -> str:
    """The database behind the proxy."""
    return make_conninfo(database, host="127.0.0.1", port=proxy.port)


@pytest.fixture
def far_service(make_service: Callable[..., Service], far_database: str) -> Service:
    return make_service("persistence", DATABASE_URL=far_database, API_KEY=KEY)


def stores(service: Service) -> bool:
    return service.post("/messages/", json=new_message()).status_code == 201


@pytest.mark.parametrize("end_signal", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
def test_a_database_that_ends_and_returns(postgres: Postgres, service: Service, end_signal: signal.Signals) -> None:
    with Load(service) as load:
        postgres.restart(end_signal)
        wait_for(lambda: stores(service), what="the service's return")
        load.wait_for_more()
    load.check()


def test_nobody_notices_that_connections_were_ended(postgres: Postgres, service: Service) -> None:
    end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'persistence'"
    with Load(service) as load:
        for _ in range(3):
            postgres.run(end_all)
            load.wait_for_more()
    load.check(may_fail=False)


def test_nobody_notices_that_the_network_reset_connections(far_service: Service, proxy: Proxy) -> None:
    with Load(far_service) as load:
        proxy.cut()
        load.wait_for_more()
    load.check(may_fail=False)


@contextmanager
def silent(postgres: Postgres, proxy: Proxy, cause: str) -> Iterator[None]:
    if cause == "stopped":
        with postgres.stopped():
            yield
    else:
        proxy.swallows = True
        yield
        proxy.swallows = False


@pytest.mark.parametrize("cause", ["stopped", "swallowed"])
def test_a_silent_database_is_a_503_in_time(
    postgres: Postgres, proxy: Proxy, far_service: Service, make_service: Callable[..., Service], cause: str
) -> None:
    chat = make_service("chat", API_BASE_URL=far_service.url)
    with Load(far_service) as load:
        with silent(postgres, proxy, cause), ThreadPoolExecutor() as pool:
            for url, status, limit in (
                (f"{far_service.url}/ready", 503, 1),
                (f"{far_service.url}/health", 200, 1),
                (f"{chat.url}/ready", 503, 2),
                (f"{chat.url}/health", 200, 1),
                (f"{far_service.url}/messages/", 503, 10),
            ):
                call = partial(requests.get, url, headers={"x-api-key": KEY}, timeout=60)
                for answered, seconds in pool.map(seconds_of, [call] * 10):  # at once
                    assert (answered, seconds < limit + 0.8) == (status, True), (url, seconds)
        wait_for(lambda: stores(far_service), what="the service's return")
        wait_for(chat.is_up)
        load.wait_for_more()
    load.check()


def test_connections_that_rested_and_died_unnoticed(far_service: Service, proxy: Proxy) -> None:
    with Load(far_service, clients=16):
        pass  # so that the pools have grown
    time.sleep(1.1)  # rest is what this is about
    for link in proxy.links:
        link.dead = True
    for _ in range(8):
        status, seconds = seconds_of(lambda: far_service.post("/messages/", json=new_message()))
        assert (status, seconds < 6) == (201, True), seconds


def test_a_full_disk_is_a_503(postgres: Postgres, database: str, service: Service) -> None:
    kept = store(service)
    postgres.run(
        """
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON messages EXECUTE FUNCTION fill()
        """,
        database,
    )
    response = service.post("/messages/", json=new_message())
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert "extend" not in response.text
    assert service.get(f"/messages/{kept['message_id']}").json() == kept
    postgres.run("DROP TRIGGER full_disk ON messages", database)
    assert stores(service)


def test_a_database_that_is_down_at_the_start_is_waited_for(
    far_database: str, proxy: Proxy, folder: Path, make_service: Callable[..., Service]
) -> None:
    targets, proxy.targets = proxy.targets, deque([str(folder / "nobody")])
    service = make_service("persistence", wait=False, DATABASE_URL=far_database, API_KEY=KEY)
    wait_for(lambda: service.get("/health").ok)
    assert service.get("/ready").status_code == 503
    proxy.targets = targets
    wait_for(lambda: stores(service), what="the service's return")


def test_a_network_that_swallows_the_look_at_the_schema(
    postgres: Postgres, database: str, far_database: str, proxy: Proxy, make_service: Callable[..., Service]
) -> None:
    with postgres.connect(database) as other, other.transaction():
        other.execute(queries.get("lock_schema"))
        service = make_service("persistence", wait=False, DATABASE_URL=far_database, API_KEY=KEY)
        locks = "SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_for(lambda: other.execute(locks).fetchone() == (True,), what="two workers that look")
        proxy.swallows = True
    wait_for(lambda: sum(link.dead for link in proxy.links) >= 2, what="the loss")
    proxy.swallows = False
    wait_for(lambda: all(service.is_up() for _ in range(20)), what="the service's return")


def test_services_that_start_at_once_on_an_empty_database(database: str, make_service: Callable[..., Service]) -> None:
    settings = {"DATABASE_URL": database, "API_KEY": KEY, "WEB_CONCURRENCY": 4}
    services = [make_service("persistence", wait=False, **settings) for _ in range(2)]
    for service in services:
        wait_for(service.is_up)
    message = store(services[0])
    assert services[1].get(f"/messages/{message['message_id']}").json() == message
    assert sum(service.text().count("Applied 001") for service in services) == 1


def test_the_stop_of_a_service_whose_database_is_silent(postgres: Postgres, service: Service) -> None:
    calls = [threading.Thread(target=service.get, args=("/messages/",)) for _ in range(4)]
    with postgres.stopped():
        for call in calls:
            call.start()
        assert service.stop() == 0
    for call in calls:
        call.join()
