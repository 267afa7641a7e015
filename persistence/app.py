"""Wires the persistence service together."""

import logging
import threading

import psycopg
from flask import Flask
from flask.typing import ResponseReturnValue

from persistence import chats, deadline, failures, messages, turns
from persistence.database import Database
from persistence.settings import Settings
from persistence.web import auth, errors, service

log = logging.getLogger(__name__)

DESCRIPTION = """\
Keeps the messages of conversations between humans and AIs in PostgreSQL.

**How to begin**: press *Authorize* and give your API key (`secrets/api_key.txt`, where you run the service).
Then open `POST /messages/`, press *Execute*, and see the message in `GET /messages/`. Messages with the same `chat_id`
are one chat; choose its id yourself. `PUT /messages/{message_id}` rates a message.

Every error has one form: `code`, `status`, a `message` that says what to do about it, and `errors` by field.
"""


def create_app(settings: Settings, conninfo: str) -> Flask:
    """Return the app over the database at `conninfo`, and open its pool: call it after the fork."""
    db = Database(conninfo, settings.db_password, settings.db_connections)
    app, api = service.create(
        "persistence",
        DESCRIPTION,
        [messages.blueprint, chats.blueprint, turns.blueprint],
        accepts=lambda key: auth.is_one_of(key, settings.api_keys),
        depends_on="The database",
        problem=db.problem,
    )
    api.spec.components.schemas["MessageChanges"]["anyOf"] = [{"required": ["content"]}, {"required": ["rating"]}]
    app.extensions["database"] = db
    app.extensions["exports"] = threading.BoundedSemaphore(settings.db_connections // 2)
    app.before_request(deadline.forget)

    @app.errorhandler(psycopg.Error)
    def failure(exc: psycopg.Error) -> ResponseReturnValue:
        if isinstance(exc, failures.PASSING):
            log.warning("The database failed: %s", failures.describe(exc))
            return errors.answer(503, "The database does not answer; try again soon.", {"Retry-After": "1"})
        log.error("A statement is wrong: %s", failures.describe(exc))
        return errors.answer(500)

    db.open()
    return app
