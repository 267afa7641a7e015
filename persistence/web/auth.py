"""The check of the API key, before anything else of a request is looked at."""

import hmac
import re
from collections.abc import Callable

from flask import Flask, request
from webargs.flaskparser import abort

from persistence.web.env import SettingsError

HEADER = "x-api-key"
PRINTABLE = re.compile(rb"[!-~]+")
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")


def presented_key() -> bytes:
    """Return the caller's key; empty if there is none. (In WSGI, a header's bytes are Latin-1: PEP 3333.)"""
    header: str = request.environ.get("HTTP_X_API_KEY", "")
    return header.encode("latin-1")


def init_app(app: Flask, accepts: Callable[[bytes], bool]) -> None:
    """Answer 401 to each request whose key `accepts` refuses, those to open paths apart."""

    @app.before_request
    def check_key() -> None:
        if request.path.rstrip("/") in OPEN_PATHS or request.path.startswith("/docs/"):
            return
        if not ((key := presented_key()) and accepts(key)):
            message = f"Send a valid key in the {HEADER} header."
            abort(401, message=message, headers={"WWW-Authenticate": "ApiKey"})


def parse_keys(secret: str | None) -> tuple[bytes, ...]:
    """Return the keys in `secret`, one a line. Raises SettingsError if there is none, or one that can't be sent."""
    keys = tuple(line.strip().encode() for line in (secret or "").splitlines() if line.strip())
    if not keys:
        raise SettingsError("API_KEY must hold at least one key")
    if not all(PRINTABLE.fullmatch(key) for key in keys):
        raise SettingsError("API_KEY: a key must be of printable ASCII characters, without spaces")
    return keys


def is_one_of(key: bytes, keys: tuple[bytes, ...]) -> bool:
    """Return whether `key` is one of `keys`, in a time that does not depend on them."""
    return any([hmac.compare_digest(key, known) for known in keys])  # noqa: C419  # a generator would stop at the first
