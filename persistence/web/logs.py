"""JSON log lines on standard output, one for each request, and the request's id on all of them."""

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flask import Flask

from persistence.web import deadline

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
_service = ""


class RequestLog:
    """What the log line of one request says. `fields` may be added to, until its response has ended."""

    def __init__(self, request_id: str, arrived: float, method: str, path: str) -> None:
        self.request_id, self.arrived = request_id, arrived
        self.fields: dict[str, Any] = {"method": method, "path": path, "status": 0, "duration_ms": 0.0}

    def write(self) -> None:
        """Write the line: the request is over."""
        self.fields["duration_ms"] = round((time.monotonic() - self.arrived) * 1000, 1)
        # past the logging module, which takes longer over it than all else that a request's log costs
        sys.stdout.buffer.write(_line(time.time(), "info", self.request_id, self.fields).encode())
        sys.stdout.flush()


_current: ContextVar[RequestLog | None] = ContextVar("current", default=None)  # of the request that this thread answers


def current() -> RequestLog:
    """Give the log of the request that this thread answers."""
    log = _current.get()
    assert log is not None, "no request is being answered"  # noqa: S101  # a mistake in our code
    return log


def _line(at: float, level: str, request_id: str | None, fields: dict[str, Any]) -> str:
    time_text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    line = {"time": time_text, "level": level, "service": _service}
    if request_id is not None:
        line["request_id"] = request_id
    return json.dumps(line | fields) + "\n"


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line for `record`, without its line break."""
        fields: dict[str, Any] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        log = _current.get()
        return _line(record.created, record.levelname.lower(), log.request_id if log else None, fields).rstrip("\n")


def configure(service: str) -> None:
    """Send what every logger of this process says to standard output, as JSON that names `service`."""
    global _service  # one process is one service
    _service = service
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("psycopg.pool", "urllib3", "openai", "httpx", "httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class Body:
    """A response's body, at whose end the request's log line is written."""

    def __init__(self, body: Iterable[bytes], log: RequestLog) -> None:
        self._body, self._log = body, log

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces as they come."""
        return iter(self._body)

    def close(self) -> None:
        """End the response, and with it the request."""
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            self._log.write()
            _current.set(None)


def init_app(app: Flask) -> None:
    """Give every request an id and a deadline, and write its log line when its response has ended."""
    answer = app.wsgi_app

    def logged(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        arrived = getattr(environ.get("gunicorn.socket"), "arrived", None) or time.monotonic()
        deadline.begin(deadline.REQUEST_SECONDS, since=arrived)
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")  # PEP 3333 has bytes as Latin-1
        log = RequestLog(request_id, arrived, environ["REQUEST_METHOD"], path)
        _current.set(log)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            log.fields["status"] = int(status[:3])
            more = [("X-Request-ID", request_id), ("X-Content-Type-Options", "nosniff")]
            return start_response(status, headers + more, exc_info)

        return Body(answer(environ, start), log)

    app.wsgi_app = logged  # type: ignore[method-assign]  # as Flask's documentation has it
