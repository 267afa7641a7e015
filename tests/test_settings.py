"""The settings of both services: what stops a start, and what never shows."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

import chat.settings
import persistence.settings
from persistence.web.env import SettingsError
from tests.services import KEY, ROOT, Service, free_port, wait_for

SECRET = "hunter2-very-secret"
NOWHERE = "postgresql://user@127.0.0.1:1/nothing"


UNSET = "(unset)"
DEFAULTS: dict[str, dict[str, str]] = {"persistence": {"API_KEY": KEY, "DATABASE_URL": NOWHERE}, "chat": {}}
LOAD: dict[str, Callable[[], object]] = {"persistence": persistence.settings.load, "chat": chat.settings.load}
UNUSABLE = [
    ("persistence", {"PORT": "no number"}, "PORT: 'no number' is not a whole number from 1 to 65535"),
    ("persistence", {"PORT": "70000"}, "PORT: '70000' is not a whole number from 1 to 65535"),
    ("persistence", {"THREADS": "-1"}, "THREADS: '-1' is not a whole number from 2 to 256"),
    ("persistence", {"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY: 'many' is not a whole number from 1 to 64"),
    ("persistence", {"API_KEY": ""}, "API_KEY: there is no key in it"),
    ("persistence", {"API_KEY": " \n "}, "API_KEY: there is no key in it"),
    ("persistence", {"API_KEY": f"{SECRET} \u00e9"}, "API_KEY: a key may only hold printable ASCII characters"),
    ("persistence", {"API_KEY": SECRET, "API_KEY_FILE": "key"}, "API_KEY: give it or API_KEY_FILE, not both"),
    (
        "persistence",
        {"API_KEY": UNSET, "API_KEY_FILE": "missing"},
        "API_KEY_FILE: missing can't be read: No such",
    ),
    ("persistence", {"API_KEY": UNSET, "API_KEY_FILE": "."}, "API_KEY_FILE: . can't be read: Is a directory"),
    ("persistence", {"API_KEY": UNSET, "API_KEY_FILE": "binary"}, "API_KEY_FILE: binary is not a text in UTF-8"),
    ("persistence", {"DATABASE_URL": f"mysql://u:{SECRET}@h/d"}, "DATABASE_URL: is no connection string or URL"),
    ("persistence", {"DATABASE_URL": f"host=h password='{SECRET}"}, "DATABASE_URL: is no connection string or URL"),
    (
        "persistence",
        {"DATABASE_URL": f"postgresql://u:{SECRET}@h:p/d"},
        "DATABASE_URL: its port is no whole number",
    ),
    ("persistence", {"DB_PASSWORD": ""}, "DB_PASSWORD: is empty"),
    ("persistence", {"DB_PASSWORD": SECRET, "DB_PASSWORD_FILE": "x"}, "DB_PASSWORD: give it or DB_PASSWORD_FILE"),
    ("chat", {"PORT": "0"}, "PORT: '0' is not a whole number from 1 to 65535"),
    ("chat", {"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY: 'two' is not a whole number from 1 to 64"),
    ("chat", {"API_BASE_URL": "app:8000"}, "API_BASE_URL: is no http or https URL"),
    ("chat", {"API_BASE_URL": "http://"}, "API_BASE_URL: is no http or https URL"),
    ("chat", {"OPENAI_BASE_URL": "http://host:port/v1"}, "OPENAI_BASE_URL: is no http or https URL"),
    (
        "chat",
        {"OPENAI_API_KEY": SECRET, "OPENAI_API_KEY_FILE": "x"},
        "OPENAI_API_KEY: give it or OPENAI_API_KEY_FILE",
    ),
    ("chat", {"OPENAI_API_KEY_FILE": "missing"}, "OPENAI_API_KEY_FILE: missing can't be read: No such"),
    ("chat", {"OPENAI_API_KEY": f"{SECRET}\n2"}, "OPENAI_API_KEY: a key may only hold printable ASCII characters"),
    ("chat", {"OPENAI_TIMEOUT": "soon"}, "OPENAI_TIMEOUT: 'soon' is not a number of seconds"),
    ("chat", {"OPENAI_TIMEOUT": "nan"}, "OPENAI_TIMEOUT: 'nan' is not a number of seconds"),
    ("chat", {"HISTORY_MESSAGES": "1.5"}, "HISTORY_MESSAGES: '1.5' is not a whole number"),
    ("chat", {"HISTORY_CHARS": "-1"}, "HISTORY_CHARS: '-1' is not a whole number"),
]


def start(module: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a service that can't start, to its end."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PORT": str(free_port())} | DEFAULTS[module]
    return subprocess.run(
        [sys.executable, "-m", module],
        env=env | settings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize(("module", "settings", "problem"), UNUSABLE)
def test_an_unusable_setting_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, settings: dict[str, str], problem: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "binary").write_bytes(b"\xff\xfe")
    for name, value in (DEFAULTS[module] | settings).items():
        if value != UNSET:
            monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        LOAD[module]()
    assert str(caught.value).startswith(problem)
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("module", "settings", "problem"),
    [
        ("persistence", {"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY: 'many' is not a whole number from 1 to 64"),
        ("persistence", {"DATABASE_URL": f"mysql://u:{SECRET}@h/d"}, "DATABASE_URL: is no connection string or URL"),
        ("chat", {"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY: 'two' is not a whole number from 1 to 64"),
        ("chat", {"OPENAI_API_KEY": f"{SECRET}\n2"}, "OPENAI_API_KEY: a key may only hold printable ASCII characters"),
    ],
)
def test_an_unusable_setting_stops_the_start(folder: Path, module: str, settings: dict[str, str], problem: str) -> None:
    stopped = start(module, folder, **settings)
    assert stopped.returncode == 1
    assert stopped.stdout == ""
    assert len(stopped.stderr.splitlines()) == 1
    assert stopped.stderr.startswith(f"{module}: {problem}")
    assert SECRET not in stopped.stderr


@pytest.mark.parametrize(
    "settings",
    [
        persistence.settings.Settings(api_keys=(SECRET.encode(),), database_url=SECRET, db_password=SECRET),
        chat.settings.Settings(openai_api_key=SECRET),
    ],
)
def test_secrets_are_in_no_repr(settings: Any) -> None:
    assert SECRET not in repr(settings)


def test_white_space_around_a_setting_is_stripped(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "password").write_text("  word \r\n")
    for name, value in {
        "API_KEY": "\n one \n\n\ttwo\r\n",
        "DB_PASSWORD_FILE": f" {folder / 'password'} ",
        "PORT": " 8123 ",
        "HOST": " 0.0.0.0\n",
        "DATABASE_URL": f" {NOWHERE}\n",
    }.items():
        monkeypatch.setenv(name, value)
    settings = persistence.settings.load()
    assert settings.api_keys == (b"one", b"two")
    assert (settings.db_password, settings.port, settings.host) == ("word", 8123, "0.0.0.0")
    assert settings.database_url == NOWHERE


def test_an_empty_setting_is_the_default(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_TIMEOUT", "API_BASE_URL", "PORT", "THREADS"):
        monkeypatch.setenv(name, "")
    assert chat.settings.load() == chat.settings.Settings()


def test_a_model_key_comes_from_its_default_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "openai_api_key.txt").write_text(f"{SECRET}\n")
    assert chat.settings.load().openai_api_key == SECRET


def test_each_of_several_keys_opens(database_url: str, folder: Path) -> None:
    (folder / "keys").write_text("first\nsecond\n")
    service = Service("persistence", folder, DATABASE_URL=database_url, API_KEY_FILE="keys", WEB_CONCURRENCY=1)
    try:
        statuses = [
            service.get("/chats/", headers={"x-api-key": key}).status_code
            for key in ("first", "second", "first\tsecond", "third")
        ]
        assert statuses == [200, 200, 401, 401]
    finally:
        service.stop()


@pytest.mark.slow
def test_host_workers_and_threads_are_as_set(database_url: str, folder: Path) -> None:
    settings = {"DATABASE_URL": database_url, "API_KEY": KEY, "HOST": "127.0.0.2", "WEB_CONCURRENCY": 3, "THREADS": 2}
    service = Service("persistence", folder, wait=False, **settings)
    try:
        wait_for(lambda: requests.get(f"http://127.0.0.2:{service.port}/ready", timeout=5).ok)
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{service.url}/health", timeout=5)
        wait_for(lambda: len(service.workers()) == 3)
    finally:
        service.stop()


def test_a_key_is_made_where_there_is_none(database_url: str, folder: Path) -> None:
    keys = []
    for _ in range(2):
        service = Service("persistence", folder, DATABASE_URL=database_url, WEB_CONCURRENCY=1)
        key = (folder / "secrets" / "api_key.txt").read_text()
        keys.append(key)
        try:
            assert service.get("/chats/", headers={"x-api-key": key.strip()}).status_code == 200
        finally:
            service.stop()
        assert key.strip() not in service.text()
    assert keys[0] == keys[1]
    assert len(keys[0].strip()) >= 32
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o700
    assert (folder / "secrets" / "api_key.txt").stat().st_mode & 0o077 == 0
    assert list((folder / "secrets").iterdir()) == [folder / "secrets" / "api_key.txt"]


@pytest.mark.slow
def test_secrets_show_in_no_log_and_no_process_list(folder: Path) -> None:
    settings = {
        "DATABASE_URL": f"postgresql://user:{SECRET}-1@127.0.0.1:1/nothing",
        "DB_PASSWORD": f"{SECRET}-2",
        "API_KEY": f"{SECRET}-3",
    }
    service = Service("persistence", folder, wait=False, **settings)
    try:
        wait_for(lambda: service.get("/health").ok)
        assert service.get("/nothing", headers={"x-api-key": f"{SECRET}-3"}).status_code == 404
        assert service.get("/nothing", headers={"x-api-key": f"{SECRET}-4"}).status_code == 401
        wait_for(lambda: "Waiting for the database" in service.text())
        for pid in (service.process.pid, *service.workers()):
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
    finally:
        service.stop()
    assert SECRET not in service.text()


def test_keys_are_rotated_without_an_outage(database_url: str, folder: Path) -> None:
    keys = folder / "keys"
    keys.write_text(KEY)
    service = Service("persistence", folder, DATABASE_URL=database_url, API_KEY_FILE=keys)
    stop, statuses = threading.Event(), set()

    def call() -> None:
        while not stop.is_set():
            statuses.add(requests.get(f"{service.url}/chats/", headers={"x-api-key": KEY}, timeout=10).status_code)

    def accepts_new_key() -> bool:
        # of each worker, since the kernel chooses one for every connection
        headers = {"x-api-key": "new-key"}
        return all(requests.get(f"{service.url}/chats/", headers=headers, timeout=10).ok for _ in range(20))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        keys.write_text(f"{KEY}\nnew-key\n")
        service.process.send_signal(signal.SIGHUP)
        wait_for(accepts_new_key)
    finally:
        stop.set()
        caller.join()
        service.stop()
    assert statuses == {200}
