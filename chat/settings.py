"""This service's settings."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from persistence.web import env
from persistence.web.env import SettingsError

OPENAI_API_KEY_FILE = Path("secrets/openai_api_key.txt")
OURS = ("model", "messages", "stream", "n", "tools")  # what no option of the request to the model may change


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


def _openai_timeout() -> float:
    given = env.text("OPENAI_TIMEOUT", "600")
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(given)) <= 86_400:
            return seconds
    raise SettingsError(f"OPENAI_TIMEOUT must be a number of seconds up to 86400, not {given!r}")


def _openai_options() -> dict[str, Any]:
    try:
        options = json.loads(env.text("OPENAI_OPTIONS", "{}"))
        json.dumps(options, allow_nan=False, ensure_ascii=False).encode()  # as it will be sent
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise SettingsError('OPENAI_OPTIONS must be a JSON object, like {"reasoning_effort": "low"}')
    if taken := [option for option in OURS if option in options]:
        raise SettingsError(f"OPENAI_OPTIONS must not name {', '.join(taken)}, which the service sets itself")
    return options


@dataclass(frozen=True)
class Settings(env.ServerSettings):
    """How the chat service is to run; the README's table says what each setting means."""

    api_base_url: str = field(default_factory=lambda: _url("API_BASE_URL", "http://app:8000"))
    openai_api_key: str = field(default_factory=_key, repr=False)
    openai_base_url: str = field(default_factory=lambda: _url("OPENAI_BASE_URL", "https://api.openai.com/v1"))
    openai_timeout: float = field(default_factory=_openai_timeout)  # seconds
    openai_options: dict[str, Any] = field(default_factory=_openai_options)
    # OpenAI switches this model off on 2027-01-14
    openai_model: str = field(default_factory=lambda: env.text("OPENAI_MODEL", "gpt-4o-mini"))
    system_prompt: str = field(default_factory=lambda: env.text("SYSTEM_PROMPT", "You are a helpful assistant."))
    history_messages: int = field(default_factory=lambda: env.number("HISTORY_MESSAGES", 50, 0, 1000))
    history_chars: int = field(default_factory=lambda: env.number("HISTORY_CHARS", 100_000, 0, 100_000_000))
    port: int = field(default_factory=lambda: env.number("PORT", 8100, 1, 65535))
    max_turns: int = field(default_factory=lambda: env.number("MAX_TURNS", 1000, 1, 10_000))

    @property
    def lacks_key(self) -> bool:
        """Return whether the provider is OpenAI and there is no key for it."""
        return not self.openai_api_key and urlsplit(self.openai_base_url).hostname == "api.openai.com"
