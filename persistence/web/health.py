"""/health: the process serves. /ready: it can do its work."""

from collections.abc import Callable

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


def init_app(app: Flask, api: ServiceApi, problem: Callable[[], str | None]) -> None:
    """Serve both. `problem` looks at once and gives None, or one sentence that says why the service can't work."""
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
        if reason := problem():
            abort(503, message=reason, headers={"Retry-After": "1"})
        return jsonify(status="ok")

    api.register_blueprint(blueprint)
