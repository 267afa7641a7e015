"""/health: the process serves. /ready: it can do its work."""

from collections.abc import Callable

import marshmallow as ma
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue
from webargs.flaskparser import abort

from persistence.web import logs
from persistence.web.errors import ServiceApi
from persistence.web.parsing import Blueprint


class StatusSchema(ma.Schema):
    """A service that is well."""

    status = ma.fields.String(required=True, metadata={"description": "Always ok.", "example": "ok"})


def init_app(app: Flask, api: ServiceApi, what: str, problem: Callable[[], str | None]) -> None:
    """Serve both. `problem` returns soon why `what` the service depends on can't do its work, or None."""
    blueprint = Blueprint("Health", __name__, description="For load balancers and container engines. No key needed.")

    @blueprint.route("/health")
    @blueprint.doc(security=[])
    @blueprint.response(200, StatusSchema, description="It serves.")
    def health() -> ResponseReturnValue:
        """Does the process serve?

        Answers whatever else is busy or down. Needs no key.
        """
        return jsonify(status="ok")

    @blueprint.route("/ready")
    @blueprint.doc(security=[])
    @blueprint.response(200, StatusSchema, description="It can do its work.")
    @blueprint.errors(503)
    def ready() -> ResponseReturnValue:
        """Can the service do its work?

        200 when what it depends on can do its work too, else 503 with `Retry-After`. Needs no key.
        """
        if reason := problem():
            logs.more_fields.get()["reason"] = reason
            abort(503, message=f"{what} does not answer; try again soon.", headers={"Retry-After": "1"})
        return jsonify(status="ok")

    api.register_blueprint(blueprint)
