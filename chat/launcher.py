"""The whole system on one machine, each part a process of its own: starts them in order, and stops them in reverse."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

import requests

from chat.settings import Settings
from persistence.web import env, process
from persistence.web.port import check_port

LOCAL_API_URL = "http://127.0.0.1:8000"
STOP_SECONDS = 70  # a part takes 30 s for its requests; persistence then stops its database
PERSISTENCE_VARIABLES = ("DATABASE_URL", "DB_PASSWORD", "DB_PASSWORD_FILE", "DATA_DIR", "API_KEY", "API_KEY_FILE")
CHAT_VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_API_KEY_FILE",
    "OPENAI_BASE_URL",
    "OPENAI_TIMEOUT",
    "OPENAI_MODEL",
    "SYSTEM_PROMPT",
    "HISTORY_MESSAGES",
    "HISTORY_CHARS",
)


class _StopError(Exception):
    """SIGTERM or Ctrl-C arrived."""


def run(settings: Settings, *, with_persistence: bool, demo_model: bool) -> int:
    """Run the parts until a signal says stop, or until one of them ends; give the exit status.

    Raises SettingsError where a port is taken.
    """
    parts: dict[str, subprocess.Popen[bytes]] = {}
    api_url = settings.api_base_url
    if with_persistence and not env.text("API_BASE_URL", ""):
        api_url = LOCAL_API_URL
    try:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        check_port(settings.host, settings.port)
        if with_persistence:
            address = urlsplit(api_url)
            own = {"HOST": address.hostname or "127.0.0.1", "PORT": str(address.port or 80)}
            parts["persistence"] = _start("persistence", _environment(CHAT_VARIABLES) | own)
            _wait_until_ready(parts, f"{api_url}/ready")
        own = {"API_BASE_URL": api_url}
        if demo_model:
            own |= _start_demo_model()
        parts["chat"] = _start("chat", _environment(PERSISTENCE_VARIABLES) | own)
        chat_url = f"http://{settings.host}:{settings.port}"
        _wait_until_ready(parts, f"{chat_url}/health")
        _say_where(settings, chat_url, api_url, demo_model)
        while True:
            _check(parts)
            time.sleep(0.2)
    except _StopError:
        return 0
    except _PartEndedError as exc:
        sys.stderr.write(f"chat: {exc}; stopping the others\n")
        return exc.status
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for part in reversed(parts.values()):
            process.stop(part, signal.SIGTERM, STOP_SECONDS)


class _PartEndedError(Exception):
    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"{name} has ended with status {status}")
        self.status = status if status > 0 else 1


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise _StopError


def _environment(others: tuple[str, ...]) -> dict[str, str]:
    """Give our environment without the settings, and secrets, of the other part."""
    return {name: value for name, value in os.environ.items() if name not in others}


def _start(name: str, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return process.start([sys.executable, "-m", name], env=environment, end_signal=signal.SIGTERM)


def _start_demo_model() -> dict[str, str]:
    from chat.demo_model import DemoModelServer  # no image carries it

    return {"OPENAI_BASE_URL": DemoModelServer().url, "OPENAI_MODEL": "demo", "no_proxy": "*"}


def _wait_until_ready(parts: Mapping[str, "subprocess.Popen[bytes]"], url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False  # a proxy would be asked for our own parts
        while True:
            _check(parts)
            try:
                if session.get(url, timeout=3).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)


def _check(parts: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    for name, part in parts.items():
        if part.poll() is not None:
            raise _PartEndedError(name, part.returncode)


def _say_where(settings: Settings, chat_url: str, api_url: str, demo_model: bool) -> None:
    model = settings.model_and_host
    if settings.lacks_key:
        model += ", which needs a key in secrets/openai_api_key.txt or OPENAI_API_KEY"
    own_database = f"a PostgreSQL of its own, in {os.environ.get('DATA_DIR') or '.data'}"
    lines = {
        "chat": f"{chat_url}/docs",
        "persistence": f"{api_url}/docs",
        "database": "that of DATABASE_URL" if os.environ.get("DATABASE_URL") else own_database,
        "key": os.environ.get("API_KEY_FILE") or ("API_KEY" if "API_KEY" in os.environ else "secrets/api_key.txt"),
        "model": "a stand-in, which only repeats what it is told" if demo_model else model,
    }
    text = "".join(f"  {name:<12} {value}\n" for name, value in lines.items())
    sys.stderr.write(f"\nReady. Ctrl-C stops all of it.\n\n{text}\n")
