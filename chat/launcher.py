"""The whole system on one machine, each part a process of its own: starts them in order, and stops them in reverse."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

import requests

from chat.settings import Settings
from persistence.web import env

LOCAL_API_URL = "http://127.0.0.1:8000"
# what each part must not see of the other's settings and secrets
OF_PERSISTENCE = ("DATABASE_URL", "DB_PASSWORD", "DB_PASSWORD_FILE", "DATA_DIR", "API_KEY", "API_KEY_FILE")
OF_CHAT = ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "OPENAI_BASE_URL", "OPENAI_OPTIONS", "SYSTEM_PROMPT")

Parts = dict[str, "subprocess.Popen[bytes]"]


def run(settings: Settings, *, with_persistence: bool, demo_model: bool) -> int:
    """Run the parts until one of them ends, or SIGTERM or Ctrl-C comes (both are blocked); return the exit status."""
    parts: Parts = {}
    own: dict[str, str] = {}
    plan: list[tuple[str, tuple[str, ...], dict[str, str], str]] = []  # of each part, with the URL that tells it is up
    if with_persistence:
        own["API_BASE_URL"] = api_url = settings.api_base_url if env.text("API_BASE_URL") else LOCAL_API_URL
        address = urlsplit(api_url)
        listen = {"HOST": address.hostname or "", "PORT": str(address.port or 80)}
        plan.append(("persistence", OF_CHAT, listen, f"{api_url}/ready"))
    if demo_model:
        from chat import demo_model as stand_in  # no image carries it

        own |= {"OPENAI_BASE_URL": stand_in.start(), "OPENAI_MODEL": "demo", "OPENAI_OPTIONS": "", "no_proxy": "*"}
    chat_url = f"http://{settings.address}"
    plan.append(("chat", OF_PERSISTENCE, own, f"{chat_url}/health"))
    try:
        for name, others, given, url in plan:
            parts[name] = _start(name, others, given)
            if not _wait_until(url, parts):
                break
        else:
            key = env.text("API_KEY_FILE") or ("API_KEY" if "API_KEY" in os.environ else "secrets/api_key.txt")
            sys.stderr.write(f"\nReady. Open {chat_url}/docs; the key is in {key}. Ctrl-C stops it all.\n\n")
        while not _is_over(parts):
            time.sleep(0.1)
        ended = _ended(parts)
    finally:
        for part in reversed(parts.values()):
            part.terminate()
            part.wait()
    if ended and not signal.sigpending():
        sys.stderr.write(f"chat: {ended} has ended, so the others were stopped\n")
        return max(1, parts[ended].returncode)
    return 0


def _start(name: str, others: tuple[str, ...], own: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a part in a session of its own, which a terminal's Ctrl-C does not reach."""
    environment = {name: value for name, value in os.environ.items() if name not in others} | own
    return subprocess.Popen([sys.executable, "-m", name], env=environment, start_new_session=True)  # noqa: S603  # nothing of it is a caller's


def _ended(parts: Parts) -> str | None:
    return next((name for name, part in parts.items() if part.poll() is not None), None)


def _is_over(parts: Parts) -> bool:
    return bool(signal.sigpending()) or _ended(parts) is not None


def _wait_until(url: str, parts: Parts) -> bool:
    """Return True once `url` answers 200, or False if there is nothing more to wait for."""
    with requests.Session() as session:
        session.trust_env = False  # a proxy would be asked for our own parts
        while not _is_over(parts):
            with suppress(requests.RequestException):
                if session.get(url, timeout=3).ok:
                    return True
            time.sleep(0.05)
    return False
