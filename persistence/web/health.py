"""/health: the process serves. /ready: it can do its work."""

from collections.abc import Callable

import marshmallow as ma
from webargs.flaskparser import abort

from persistence.web import logs
from persistence.web.parsing import Blueprint


class StatusSchema(ma.Schema):
    """A service that is well."""

    status = ma.fields.String(required=True, metadata={"description": "Always ok.", "examples": ["ok"]})


def blueprint(what: str, problem: Callable[[], str | None]) -> Blueprint:
    """Return both views. `problem` returns soon why `what` the service depends on can't do its work, or None."""
    views = Blueprint("Health", __name__, description="For load balancers and container engines. No key needed.")

    @views.route("/health")
    @views.doc(security=[])
    @views.response(200, StatusSchema, description="It serves.")
    def health() -> dict[str, str]:
        """Does the process serve?

        Answers whatever else is busy or down. Needs no key.
        """
        return {"status": "ok"}

    @views.route("/ready")
    @views.doc(security=[])
    @views.response(200, StatusSchema, description="It can do its work.")
    @views.errors(503)
    def ready() -> dict[str, str]:
        """Can the service do its work?

        200 when what it depends on can do its work too, else 503 with `Retry-After`. Needs no key.
        """
        if reason := problem():
            logs.more_fields.get()["reason"] = reason
            abort(503, message=f"{what} does not answer; try again soon.", headers={"Retry-After": "1"})
        return {"status": "ok"}

    return views
