"""Wires the persistence service together."""

import logging

from flask import Flask
from flask.typing import ResponseReturnValue

from persistence import chats, messages, schemas
from persistence.database import Database, DatabaseUnavailableError
from persistence.listing import Exports
from persistence.settings import Settings
from persistence.web import arguments, auth, docs, errors, fields, health, logs

log = logging.getLogger(__name__)

DESCRIPTION = """\
Keeps the messages of conversations between humans and AIs in PostgreSQL.

**How to begin**: press *Authorize* and give your API key (`secrets/api_key.txt`, where you run the service).
Then open `POST /messages/`, press *Execute*, and see the message in `GET /messages/`. Messages with the same `chat_id`
are one conversation; choose its id yourself. `PUT /messages/{message_id}` rates a message.

Every error has one form: `code`, `status`, a `message` that says what to do about it, and `errors` by field.
"""


def create_app(settings: Settings, conninfo: str) -> Flask:
    """Make the app over the database at `conninfo`, and open its pool: call it after the fork."""
    app = Flask("persistence", static_folder=None)
    database = Database(conninfo, settings.db_password, settings.threads)
    app.extensions["database"] = database
    app.extensions["exports"] = Exports(max(1, settings.threads // 2))

    logs.init_app(app)
    auth.init_app(app, lambda key: auth.is_one_of(key, settings.api_keys))
    arguments.init_app(app)
    api = docs.configure(app, "Persistence", "1.0.0", DESCRIPTION)
    fields.init_app(app, api)
    api.register_field(schemas.TimeField, "string", "date-time")
    api.register_blueprint(messages.blueprint)
    api.register_blueprint(chats.blueprint)
    health.init_app(app, api, "The database", database.answers, 0.8)
    docs.init_app(app, api)

    @app.errorhandler(DatabaseUnavailableError)
    def unavailable(exc: DatabaseUnavailableError) -> ResponseReturnValue:
        log.warning("The database failed: %s", exc)
        return errors.answer(503, "The database is away; try again soon.", {"Retry-After": "1"})

    database.open()
    return app
