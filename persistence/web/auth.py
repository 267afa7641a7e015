"""The key check, before anything else of a request is looked at."""

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
    """Give the bytes of the caller's x-api-key header; empty where there is none (WSGI: headers are Latin-1)."""
    header: str = request.environ.get("HTTP_X_API_KEY", "")
    return header.encode("latin-1")


def is_open(path: str) -> bool:
    """Tell whether `path` needs no key."""
    return path.rstrip("/") in OPEN_PATHS or path.startswith("/docs/")


def init_app(app: Flask, accepts: Callable[[bytes], bool]) -> None:
    """Answer 401 to every request whose key `accepts` turns down, the open paths apart."""

    @app.before_request
    def check_key() -> None:
        if is_open(request.path):
            return
        key = presented_key()
        if not key or not accepts(key):
            message = f"Send a valid key in the {HEADER} header." if key else f"Send your key in the {HEADER} header."
            abort(401, message=message, headers={"WWW-Authenticate": "ApiKey"})


def parse_keys(secret: str | None) -> tuple[bytes, ...]:
    """Give the keys that `secret` holds, one a line. Raises SettingsError where there is none, or one can't be sent."""
    keys = tuple(line.strip().encode() for line in (secret or "").splitlines() if line.strip())
    if not keys:
        raise SettingsError("API_KEY: there is no key in it")
    if not all(PRINTABLE.fullmatch(key) for key in keys):
        raise SettingsError("API_KEY: a key may only hold printable ASCII characters and no spaces")
    return keys


def is_one_of(key: bytes, keys: tuple[bytes, ...]) -> bool:
    """Tell whether `key` is one of `keys`, in a time that says nothing of them."""
    return any([hmac.compare_digest(key, known) for known in keys])  # noqa: C419  # all of them are compared, always
