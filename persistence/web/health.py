"""/health: the process serves. /ready: it can do its work."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import marshmallow as ma
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue
from flask_smorest import Blueprint
from webargs.flaskparser import abort

from persistence.web.docs import fails
from persistence.web.errors import ServiceApi


class StatusSchema(ma.Schema):
    """A service that is well."""

    status = ma.fields.String(required=True, metadata={"description": "Always ok.", "example": "ok"})


class SharedLook:
    """A look that all who ask meanwhile share, and that nobody waits for longer than `seconds`."""

    def __init__(self, look: Callable[[], bool], seconds: float) -> None:
        self._look, self._seconds = look, seconds
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="ready")
        self._lock = threading.Lock()
        self._result: Future[bool] | None = None
        self._until = 0.0

    def __call__(self) -> bool:
        """Look, and tell whether all is well."""
        with self._lock:
            if self._result is None or self._result.done():
                self._result, self._until = self._looker.submit(self._look), time.monotonic() + self._seconds
            result, until = self._result, self._until
        try:
            return result.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            return False


def init_app(app: Flask, api: ServiceApi, what: str, look: Callable[[], bool], seconds: float) -> None:
    """Serve both. `look` tells whether `what` the service depends on answers, and is waited for so many `seconds`."""
    is_ready = SharedLook(look, seconds)
    blueprint = Blueprint("Health", __name__, description="For load balancers and container engines. No key needed.")

    @blueprint.route("/health", strict_slashes=False)
    @blueprint.doc(security=[], operationId="health")
    @blueprint.response(200, StatusSchema, description="It serves.")
    def health() -> ResponseReturnValue:
        """Does the process serve?

        Answers while every other thread is busy, and whatever else is down. Needs no key.
        """
        return jsonify(status="ok")

    @blueprint.route("/ready", strict_slashes=False)
    @blueprint.doc(security=[], operationId="ready")
    @blueprint.response(200, StatusSchema, description="It can do its work.")
    @fails({503: ("What it depends on does not answer.", "The database does not answer; try again soon.")})
    def ready() -> ResponseReturnValue:
        """Can the service do its work?

        200 when what it depends on answers, else 503 with `Retry-After`. Needs no key.
        """
        if not is_ready():
            abort(503, message=f"{what} does not answer; try again soon.", headers={"Retry-After": "1"})
        return jsonify(status="ok")

    api.register_blueprint(blueprint)
