"""PgBouncer between the service and its database: one without prepared statements of its own, which mixes up ours."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.load import Load, locked_messages
from tests.messages import new_message
from tests.postgres import Postgres
from tests.services import KEY, Service, free_port, wait_for

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="Debian's pgbouncer is not installed"),
]

SETTINGS = """
[databases]
* = host=127.0.0.1 port={database} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    node = Postgres(tmp_path_factory.mktemp("pgbouncer") / "database")
    yield node
    node.kill()


@pytest.fixture(params=["session", "transaction"])
def url(request: pytest.FixtureRequest, database: Postgres, tmp_path: Path) -> Iterator[str]:
    """The database behind a pooler of one mode."""
    port, settings = free_port(), tmp_path / "pgbouncer.ini"
    size = 40 if request.param == "session" else 3
    settings.write_text(SETTINGS.format(database=database.port, port=port, mode=request.param, size=size))
    user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to be root
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([str(PROGRAM), *user, str(settings)], stdout=log, stderr=log)
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(10)


def test_the_service_works_behind_it(url: str, make_service: Callable[..., Service]) -> None:
    service = make_service("persistence", DATABASE_URL=url, API_KEY=KEY)
    with Load(service, 16) as load:
        load.wait_for_more(500)
        wait_for(lambda: all(service.get("/ready").ok for _ in range(20)))
    load.check(may_fail=False)


def test_no_setting_of_ours_holds_for_others(url: str, make_service: Callable[..., Service]) -> None:
    with Load(make_service("persistence", DATABASE_URL=url, API_KEY=KEY), 16):
        for _ in range(20):
            with psycopg.connect(url) as other:
                limits = other.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
                assert limits.fetchone() == ("0", "0")


def test_what_is_given_up_is_not_done_later(url: str, database: Postgres, make_service: Callable[..., Service]) -> None:
    service = make_service("persistence", DATABASE_URL=url, API_KEY=KEY)
    with locked_messages(database.conninfo) as waiting:
        assert service.post("/messages/", json=new_message()).status_code == 503
        wait_for(lambda: waiting() == 0, 10)
