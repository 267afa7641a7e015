"""Wires the chat service together."""

import threading

from flask import Flask
from flask.typing import ResponseReturnValue

from chat import routes
from chat.client import PersistenceClient, PersistenceError
from chat.conversation import Conversations, ReplyLostError
from chat.model import Model, ModelError
from chat.settings import Settings
from persistence.web import arguments, auth, docs, fields, health, logs

SHORT_THREADS = 16  # never taken by turns, so that short requests find a thread

DESCRIPTION = """\
Talks to a language model, and keeps both sides of every conversation in the persistence service.

**How to begin**: press *Authorize* and give your API key (`secrets/api_key.txt`, where you run the service). Then open
`POST /chat`, press *Execute*, and read the model's reply. To go on, send the `chat_id` of the answer with your next
message; the model is given what was said before. `GET /chat/{chat_id}` shows the whole conversation.

Every error has one form: `code`, `status`, a `message` that says what to do about it, and `errors` by field.
"""


def create_app(settings: Settings) -> Flask:
    """Make the app of one worker: call it after the fork."""
    app = Flask("chat", static_folder=None)
    client = PersistenceClient(settings.api_base_url)
    app.extensions["client"] = client
    app.extensions["conversations"] = Conversations(settings, client, Model(settings))
    app.extensions["places"] = threading.BoundedSemaphore(
        max(1, settings.threads - min(SHORT_THREADS, settings.threads // 2))
    )

    logs.init_app(app)
    auth.init_app(app, lambda _key: True)  # the persistence service decides
    arguments.init_app(app)
    api = docs.configure(app, "Chat", "1.0.0", DESCRIPTION)
    fields.init_app(app, api)
    api.register_blueprint(routes.blueprint)
    health.init_app(app, api, "The persistence service", client.is_ready, 1.7)
    docs.init_app(app, api)

    @app.errorhandler(ModelError)
    @app.errorhandler(PersistenceError)
    @app.errorhandler(ReplyLostError)
    def failure(exc: ModelError | PersistenceError | ReplyLostError) -> ResponseReturnValue:
        return routes.answer_failure(exc)

    return app
