"""Settings from environment variables, and secrets from files beside them."""

import os
from pathlib import Path


class SettingsError(Exception):
    """A setting that can't be used. Its text is one line that names the variable and what is wrong."""


def text(name: str, default: str) -> str:
    """Give the variable's text without the white space around it; `default` where it is unset or empty."""
    return os.environ.get(name, "").strip() or default


def number(name: str, default: int, low: int, high: int) -> int:
    """Give the variable as a whole number from `low` to `high`; `default` where it is unset or empty.

    Raises SettingsError for anything else.
    """
    given = text(name, str(default))
    if not (given.isascii() and given.isdigit() and low <= int(given[:12]) <= high):
        raise SettingsError(f"{name}: {given!r} is not a whole number from {low} to {high}")
    return int(given)


def secret(name: str, default_file: Path | None = None) -> str | None:
    """Give the secret in the variable `name`, or in the file that `name`_FILE names, or in `default_file`.

    White space around it is stripped, so an empty text says that an empty secret was given; None, that none was.
    Raises SettingsError where both variables are given and where a file can't be read.
    """
    given, file_name = os.environ.get(name), text(f"{name}_FILE", "")
    if given is not None and file_name:
        raise SettingsError(f"{name}: give it or {name}_FILE, not both")
    if given is not None:
        return given.strip()
    if file_name:
        return _read(f"{name}_FILE", Path(file_name))
    if default_file is not None and default_file.exists():
        return _read(name, default_file)
    return None


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: {path} is not a text in UTF-8") from None
    except OSError as exc:
        raise SettingsError(f"{name}: {path} can't be read: {exc.strerror}") from None
