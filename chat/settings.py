"""This service's settings."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persistence.web import env
from persistence.web.env import SettingsError

OPENAI_API_KEY_FILE = Path("secrets/openai_api_key.txt")
OPENAI_URL = "https://api.openai.com/v1"
OURS = ("model", "messages", "stream", "n", "tools")  # what no option of the request to the model may change


@dataclass(frozen=True)
class Settings:
    """How the chat service is to run; the README's table says what each setting means."""

    api_base_url: str = "http://app:8000"
    openai_api_key: str = field(default="", repr=False)
    openai_base_url: str = OPENAI_URL
    openai_timeout: float = 600.0  # seconds
    openai_options: dict[str, Any] = field(default_factory=dict)
    openai_model: str = "gpt-4o-mini"  # OpenAI switches it off on 2027-01-14
    system_prompt: str = "You are a helpful assistant."
    history_messages: int = 50
    history_chars: int = 100_000
    host: str = "127.0.0.1"
    port: int = 8100
    workers: int = 2  # for two cores
    max_turns: int = 1000
    graceful_timeout: int = 30  # seconds

    @property
    def lacks_key(self) -> bool:
        """Return whether the provider is OpenAI and there is no key for it."""
        return not self.openai_api_key and urlsplit(self.openai_base_url).hostname == "api.openai.com"

    @property
    def model_and_host(self) -> str:
        """Return the model's name and where it is, for people to read; a URL could hold a password."""
        return f"{self.openai_model} at {urlsplit(self.openai_base_url).hostname}"


def load() -> Settings:
    """Return the settings from the environment. Raises SettingsError."""
    return Settings(
        api_base_url=_url("API_BASE_URL", Settings.api_base_url),
        openai_api_key=_key(),
        openai_base_url=_url("OPENAI_BASE_URL", Settings.openai_base_url),
        openai_timeout=_seconds("OPENAI_TIMEOUT", Settings.openai_timeout),
        openai_options=_options("OPENAI_OPTIONS"),
        openai_model=env.text("OPENAI_MODEL", Settings.openai_model),
        system_prompt=env.text("SYSTEM_PROMPT", Settings.system_prompt),
        history_messages=env.number("HISTORY_MESSAGES", Settings.history_messages, 0, 1000),
        history_chars=env.number("HISTORY_CHARS", Settings.history_chars, 0, 100_000_000),
        host=env.text("HOST", Settings.host),
        port=env.number("PORT", Settings.port, 1, 65535),
        workers=env.number("WEB_CONCURRENCY", Settings.workers, 1, 64),
        max_turns=env.number("MAX_TURNS", Settings.max_turns, 1, 10_000),
        graceful_timeout=env.number("GRACEFUL_TIMEOUT", Settings.graceful_timeout, 1, 3600),
    )


def _url(name: str, default: str) -> str:
    url = env.text(name, default).rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(f"{name} must be an http or https URL")
    return url


def _key() -> str:
    key = env.secret("OPENAI_API_KEY", OPENAI_API_KEY_FILE) or ""
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise SettingsError("OPENAI_API_KEY must be of printable ASCII characters, without spaces")
    return key


def _seconds(name: str, default: float) -> float:
    given = env.text(name, str(default))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise SettingsError(f"{name} must be a number of seconds up to 86400, not {given!r}")
    return seconds


def _options(name: str) -> dict[str, Any]:
    try:
        options = json.loads(env.text(name, "{}"))
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise SettingsError(f'{name} must be a JSON object, like {{"reasoning_effort": "low"}}')
    if taken := [option for option in OURS if option in options]:
        raise SettingsError(f"{name} must not name {', '.join(taken)}, which the service sets itself")
    return options
