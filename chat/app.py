"""Wires the chat service together."""

from flask import Flask

from chat import routes
from chat.client import PersistenceClient
from chat.conversation import Conversations
from chat.errors import TurnError
from chat.model import Model
from chat.settings import Settings
from persistence.web import service

DESCRIPTION = """\
Talks to a language model, and keeps both sides of every chat in the persistence service.

**How to begin**: press *Authorize* and give your API key (`secrets/api_key.txt`, where you run the service). Then open
`POST /chat`, press *Execute*, and read the model's reply. To go on, send the `chat_id` of the answer with your next
message; the model is given what was said before. `GET /chat/{chat_id}` shows the whole chat.

Every error has one form: `code`, `status`, a `message` that says what to do about it, and `errors` by field.
"""


def create_app(settings: Settings) -> Flask:
    """Return the app of one worker: call it after the fork."""
    client = PersistenceClient(settings.api_base_url)
    app, _ = service.create(
        "chat",
        DESCRIPTION,
        [routes.blueprint],
        accepts=lambda _key: True,  # the persistence service decides
        depends_on="The persistence service",
        problem=client.problem,
    )
    conversations = Conversations(settings, client, Model(settings))
    app.extensions |= {"client": client, "conversations": conversations, "is_busy": conversations.is_busy}
    app.register_error_handler(TurnError, routes.answer_failure)
    return app
