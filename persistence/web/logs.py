"""JSON log lines on standard output, one for each request, and the request's id on all of them."""

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, request

from persistence.web import deadline

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that this thread answers
requests_log = logging.getLogger("requests")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON; what a record carries in `fields` stands behind the fixed ones."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        """Give the line for `record`, with no line break in it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self.service,
        }
        if (request_id := _request_id.get()) is not None:
            line["request_id"] = request_id
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields is None:
            fields = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | fields)


def configure(service: str) -> None:
    """Send what every logger of this process says to standard output, as JSON that names `service`."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("psycopg.pool", "urllib3", "openai", "httpx", "httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def init_app(app: Flask) -> None:
    """Give every request an id and a deadline, and write its log line when its response has ended."""

    @app.before_request
    def begin() -> None:
        g.arrived = getattr(request.environ.get("gunicorn.socket"), "arrived", None) or time.monotonic()
        deadline.begin(deadline.REQUEST_SECONDS, since=g.arrived)
        given = request.environ.get("HTTP_X_REQUEST_ID", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        g.log_fields = {}
        _request_id.set(g.request_id)

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.direct_passthrough = False  # with it, nothing would be called on close of a file
        fields = {
            "method": request.method,
            "path": request.path,
            "status": response.status_code,
        }
        arrived, more = g.arrived, g.log_fields

        @response.call_on_close
        def log() -> None:
            fields["duration_ms"] = round((time.monotonic() - arrived) * 1000, 1)
            requests_log.info("", extra={"fields": fields | more})
            _request_id.set(None)

        return response
