"""Settings from environment variables, and secrets from files beside them."""

import os
from dataclasses import dataclass, field
from pathlib import Path


class SettingsError(Exception):
    """A setting that can't be used. Its text is one line that names the variable and the rule that it breaks."""


def text(name: str, default: str = "") -> str:
    """Return the variable without the white space around it; `default` if it is unset or empty.

    Raises SettingsError if it is no text.
    """
    given = os.environ.get(name, "")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{name} must be text in UTF-8") from None
    return given.strip() or default


def number(name: str, default: int, low: int, high: int) -> int:
    """Return the variable as a whole number from `low` to `high`; `default` if it is unset or empty.

    Raises SettingsError for anything else.
    """
    given = text(name, str(default))
    if not (given.isascii() and given.isdigit() and low <= int(given[:12]) <= high):
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {given!r}")
    return int(given)


def secret(name: str, default_file: Path | None = None) -> str | None:
    """Return the secret in the variable `name`, or in the file that `name`_FILE names, or in `default_file`.

    White space around it is stripped, so an empty text means that an empty secret was given; None, that none was.
    Raises SettingsError if both variables are given, or if a file can't be read.
    """
    file_name = text(f"{name}_FILE")
    if name in os.environ and file_name:
        raise SettingsError(f"{name} and {name}_FILE are both set: unset one of them")
    if name in os.environ:
        return text(name)
    variable, path = (f"{name}_FILE", Path(file_name)) if file_name else (name, default_file)
    if path is None or not (file_name or path.exists()):
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: the file {path} must be text in UTF-8") from None
    except OSError as exc:
        raise SettingsError(f"{variable}: can't read the file {path}: {exc.strerror}") from None


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a service is served. What is not given is read from the environment, which may raise SettingsError."""

    host: str = field(default_factory=lambda: text("HOST", "127.0.0.1"))
    port: int
    workers: int = field(default_factory=lambda: number("WEB_CONCURRENCY", 2, 1, 64))  # for two cores
    graceful_timeout: int = field(default_factory=lambda: number("GRACEFUL_TIMEOUT", 30, 1, 3600))  # seconds

    @property
    def address(self) -> str:
        """Return host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
