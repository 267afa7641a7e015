"""The settings of both services: what stops a start, and what never shows."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

import chat.settings
import persistence.settings
from chat.client import PersistenceClient
from persistence.web.env import SettingsError
from tests.chats import running
from tests.services import KEY, ROOT, free_port, wait_for

SECRET = "hunter2-very-secret"
NOWHERE = "postgresql://user@127.0.0.1:1/nothing"
DEFAULTS: dict[str, dict[str, str]] = {"persistence": {"API_KEY": KEY, "DATABASE_URL": NOWHERE}, "chat": {}}
LOAD: dict[str, Callable[[], object]] = {"persistence": persistence.settings.Settings, "chat": chat.settings.Settings}
RANGES = {"PORT": (1, 65535), "WEB_CONCURRENCY": (1, 64), "GRACEFUL_TIMEOUT": (1, 3600), "DB_CONNECTIONS": (2, 256)}
RANGES |= {"MAX_TURNS": (1, 10_000), "HISTORY_MESSAGES": (0, 1000), "HISTORY_CHARS": (0, 100_000_000)}
UNUSABLE = {
    **{
        f"{name}={value}": f"{name} must be a whole number from {low} to {high}, not {value!r}"
        for name, (low, high) in RANGES.items()
        for value in (f"{low - 1}", f"{high + 1}", "x", "1.5", "²")
    },
    "API_KEY= \n ": "API_KEY must hold at least one key",
    f"API_KEY={SECRET} \u00e9": "API_KEY: a key must be of printable ASCII characters",
    "API_KEY_FILE=missing": "API_KEY_FILE: can't read the file missing: No such",
    "API_KEY_FILE=.": "API_KEY_FILE: can't read the file .: Is a directory",
    "API_KEY_FILE=binary": "API_KEY_FILE: the file binary must be text in UTF-8",
    f"DATABASE_URL=mysql://u:{SECRET}@h/d": "DATABASE_URL must be a connection string or URL",
    f"DATABASE_URL=host=h password='{SECRET}": "DATABASE_URL must be a connection string or URL",
    f"DATABASE_URL=postgresql://u:{SECRET}@h:p/d": "DATABASE_URL: its port must be a whole number",
    "DATABASE_URL=host=a,b,c port=1,2": "DATABASE_URL must name one port, or one for each host",
    "DB_PASSWORD=": "DB_PASSWORD must not be empty",
    "API_BASE_URL=app:8000": "API_BASE_URL must be an http or https URL",
    "API_BASE_URL=http://": "API_BASE_URL must be an http or https URL",
    "OPENAI_BASE_URL=http://host:port/v1": "OPENAI_BASE_URL must be an http or https URL",
    f"OPENAI_API_KEY={SECRET}\n2": "OPENAI_API_KEY must be of printable ASCII characters",
    **{f"OPENAI_TIMEOUT={value}": "OPENAI_TIMEOUT must be a number of seconds" for value in ("soon", "nan", "0")},
    **{
        f"OPENAI_OPTIONS={value}": "OPENAI_OPTIONS must be a JSON object"
        for value in ("[]", "{", "low", '{"x": NaN}', r'{"x": "\ud800"}')
    },
    **{f"{name}=\udcff": f"{name} must be text in UTF-8" for name in ("HOST", "API_KEY", "OPENAI_MODEL")},
    **{
        f'OPENAI_OPTIONS={{"{name}": 1}}': f"OPENAI_OPTIONS must not name {name}"
        for name in ("model", "messages", "stream", "n", "tools")
    },
}


@pytest.mark.parametrize("given", UNUSABLE)
def test_an_unusable_setting_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    name, _, value = given.partition("=")
    module = "chat" if name.startswith(("OPENAI", "API_BASE", "HISTORY", "MAX")) else "persistence"
    monkeypatch.chdir(folder)
    (folder / "binary").write_bytes(b"\xff\xfe")
    settings = DEFAULTS[module] | {name: value}
    for variable in settings.keys() - {name.removesuffix("_FILE")} | {name}:
        monkeypatch.setenv(variable, settings[variable])
    with pytest.raises(SettingsError) as caught:
        LOAD[module]()
    assert str(caught.value).startswith(UNUSABLE[given])
    assert str(caught.value).isprintable()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


STOPS: list[tuple[str, dict[str, str]]] = [
    ("persistence", {"WEB_CONCURRENCY": "many"}),
    ("persistence", {"API_KEY": SECRET, "API_KEY_FILE": "key"}),
    ("chat", {"OPENAI_API_KEY": f"{SECRET}\n2"}),
]


@pytest.mark.parametrize(("module", "given"), STOPS)
def test_an_unusable_setting_stops_the_start(folder: Path, module: str, given: dict[str, str]) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PORT": str(free_port())} | DEFAULTS[module] | given
    command = [sys.executable, "-m", module]
    stopped = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (stopped.returncode, stopped.stdout, len(stopped.stderr.splitlines())) == (1, "", 1)
    assert stopped.stderr.startswith(f"{module}: {next(iter(given))} ")
    assert SECRET not in stopped.stderr


def test_secrets_are_in_no_repr() -> None:
    secrets = persistence.settings.Settings(api_keys=(SECRET.encode(),), database_url=SECRET, db_password=SECRET)
    assert SECRET not in repr(secrets) + repr(chat.settings.Settings(openai_api_key=SECRET))


def test_a_password_in_a_url_is_in_no_reason() -> None:
    assert PersistenceClient(f"http://user:{SECRET}@127.0.0.1:1").problem() == "127.0.0.1:1: ConnectionError"


def test_white_space_around_a_setting_is_stripped_and_an_empty_one_is_the_default(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(folder)
    (folder / "password").write_text("  word \r\n")
    given = {"API_KEY": "\n one \n\n\ttwo\r\n", "DB_PASSWORD_FILE": " password ", "PORT": " 8123 ", "HOST": ""}
    for name, value in (given | {"DATABASE_URL": f" {NOWHERE}\n"}).items():
        monkeypatch.setenv(name, value)
    settings = persistence.settings.Settings()
    expected = persistence.settings.Settings(
        api_keys=(b"one", b"two"), database_url=NOWHERE, db_password="word", port=8123, host="127.0.0.1"
    )
    assert vars(settings) == vars(expected)


def test_the_key_of_the_model_comes_from_its_default_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "openai_api_key.txt").write_text(f"{SECRET}\n")
    assert chat.settings.Settings() == chat.settings.Settings(openai_api_key=SECRET)


def test_a_key_is_made_where_there_is_none(database_url: str, folder: Path) -> None:
    keys = []
    for _ in range(2):
        with running("persistence", folder, DATABASE_URL=database_url, WEB_CONCURRENCY=1) as service:
            keys.append((folder / "secrets" / "api_key.txt").read_text().strip())
            assert service.get("/chats/", headers={"x-api-key": keys[-1]}).status_code == 200
        assert keys[-1] not in service.text()
    assert keys[0] == keys[1]
    assert len(keys[0]) >= 32
    made = [folder / "secrets", *(folder / "secrets").iterdir()]
    assert [(path.name, path.stat().st_mode & 0o777) for path in made] == [("secrets", 0o700), ("api_key.txt", 0o600)]


@pytest.mark.slow
def test_host_and_workers_are_as_set_and_secrets_show_in_no_log_and_no_process_list(folder: Path) -> None:
    settings = {"HOST": "127.0.0.2", "WEB_CONCURRENCY": 3, "DB_PASSWORD": f"{SECRET}-2", "API_KEY": f"{SECRET}-3"}
    url = f"postgresql://user:{SECRET}-1@127.0.0.1:1/nothing"
    with running("persistence", folder, wait=False, DATABASE_URL=url, **settings) as service:
        service.url = f"http://127.0.0.2:{service.port}"
        wait_for(lambda: service.get("/health").ok)
        with pytest.raises(ConnectionRefusedError):
            service.raw(b"")  # which goes to 127.0.0.1
        wait_for(lambda: len(service.workers()) == 3)
        for number, status in ((3, 404), (4, 401)):
            assert service.get("/nothing", headers={"x-api-key": f"{SECRET}-{number}"}).status_code == status
        wait_for(lambda: "No connection to the database" in service.text())
        for pid in (service.process.pid, *service.workers()):
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
    assert SECRET not in service.text()


@pytest.mark.slow
def test_keys_are_rotated_without_an_outage(database_url: str, folder: Path) -> None:
    keys, done = folder / "keys", threading.Event()
    keys.write_text(KEY)

    def call(key: str) -> int:
        return requests.get(f"{service.url}/chats/", headers={"x-api-key": key}, timeout=30).status_code

    def call_until_done() -> set[int]:
        return {call(KEY) for _ in iter(done.is_set, True)}

    with running("persistence", folder, DATABASE_URL=database_url, API_KEY_FILE=keys) as service:
        with ThreadPoolExecutor(1) as pool:
            statuses = pool.submit(call_until_done)
            keys.write_text(f"{KEY}\nnew-key\n")
            service.process.send_signal(signal.SIGHUP)
            try:  # each worker takes it, and the kernel chooses one for every connection
                wait_for(lambda: {call("new-key") for _ in range(20)} == {200})
            finally:
                done.set()
        assert [call(key) for key in ("new-key", "new-key\tx", f"{KEY}x")] == [200, 401, 401]
    assert statuses.result() == {200}
