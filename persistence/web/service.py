"""What both apps are wired with."""

from collections.abc import Callable, Sequence

from flask import Flask

from persistence.web import auth, docs, fields, health, logs, parsing
from persistence.web.errors import ServiceApi
from persistence.web.parsing import Blueprint


def create(
    name: str,
    description: str,
    blueprints: Sequence[Blueprint],
    *,
    accepts: Callable[[bytes], bool],
    depends_on: str,
    problem: Callable[[], str | None],
) -> tuple[Flask, ServiceApi]:
    """Return the app `name` with its API: logs, keys that `accepts` accepts, errors, documentation, health, blueprints.

    `problem` returns soon why what the service `depends_on` can't do its work, or None.
    """
    app = Flask(name, static_folder=None, template_folder=docs.FOLDER)
    app.ensure_sync = lambda func: func  # type: ignore[method-assign]  # none is a coroutine; asking costs 14 us a request
    logs.init_app(app)
    auth.init_app(app, accepts)
    parsing.init_app(app)
    api = docs.init_app(app, description)
    fields.init_app(app, api)
    for blueprint in (*blueprints, health.blueprint(depends_on, problem)):
        api.register_blueprint(blueprint)
    return app, api
