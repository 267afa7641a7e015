"""The schemas of requests and responses: the rules for fields, and what Swagger UI says of them."""

from typing import Any

import marshmallow as ma
from marshmallow.validate import Length

from persistence.web.fields import CHAT_ID, MESSAGE, LimitField, MessageSchema, PageSchema, TimeField, UUIDField, choice

WORKER_ID = "c1f6a3de-1b0c-4a57-9a3e-2f8d1c5b7e60"


class NewMessageSchema(MessageSchema):
    """A message to store."""

    optional: tuple[str, ...] = ("message_id", "rating", "sent_at")

    def on_bind_field(self, field_name: str, field_obj: ma.fields.Field[Any]) -> None:
        """Require the field if it is not optional."""
        field_obj.required = field_name not in self.optional


class ImportedMessageSchema(NewMessageSchema):
    """A message to import, as the export has it."""

    optional = ("rating", "sent_at")


class ImportSchema(ma.Schema):
    """What an import has done."""

    stored = ma.fields.Integer(required=True, metadata={"description": "How many are new."})
    already_there = ma.fields.Integer(required=True, metadata={"description": "How many were there."})


class MessageChangesSchema(NewMessageSchema):
    """What to change of a message: `content`, `rating` or both. Other fields may be sent with the values they have."""

    optional = tuple(MESSAGE)


class MessagesQuerySchema(PageSchema):
    """Which messages to list."""

    chat_id = UUIDField("Only those of this chat.", CHAT_ID)
    role = choice("Only those written by an ai or a human.", "ai", "human")
    rating = choice("Only those rated so; null: not rated.", "false", "null", "true")
    since = TimeField("Only those sent at this time or later.")
    until = TimeField("Only those sent before this time.")


class ChatsQuerySchema(ma.Schema):
    """Which chats to list."""

    after = UUIDField("Only what follows this chat in the present order.", CHAT_ID)
    limit = LimitField("At most so many.", 200, load_default=50)


class ChatSchema(ma.Schema):
    """A chat, in short."""

    chat_id = UUIDField("Its id.", CHAT_ID, required=True)
    message_count = ma.fields.Integer(required=True, metadata={"description": "How many messages it has."})
    first_sent_at = TimeField("`sent_at` of the message stored first.", required=True)
    last_sent_at = TimeField("`sent_at` of the message stored last.", required=True)
    title = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The start of the first human message, on one line; null if there is none."},
    )


class WorkerSchema(ma.Schema):
    """A worker of the chat service."""

    worker_id = UUIDField("An id that the worker chose for itself.", WORKER_ID, required=True)


class TurnsSchema(WorkerSchema):
    """Turns, by the ids of their human messages, and the worker that is at work on them."""

    message_ids = ma.fields.List(
        UUIDField("The id of the human message."),
        required=True,
        validate=Length(max=10_000),
        metadata={"description": "The turns."},
    )
