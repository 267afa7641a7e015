"""The schemas of requests and responses: the rules for fields, and what Swagger UI says of them."""

from uuid import uuid4

import marshmallow as ma
from marshmallow.validate import Length

from persistence.web import fields
from persistence.web.fields import CHAT_ID, MESSAGE_ID, MessageSchema, PageSchema

WORKER_ID = "c1f6a3de-1b0c-4a57-9a3e-2f8d1c5b7e60"


class NewMessageSchema(MessageSchema):
    """A message to store."""

    message_id = fields.uuid(
        "Its id; a fresh one if absent. Choose it yourself, and you can send the request again.",
        load_default=lambda: str(uuid4()),
    )
    chat_id = fields.uuid("The chat that it belongs to; any id that you choose.", CHAT_ID, required=True)
    rating = fields.rating(load_default=None)
    sent_at = fields.time("When it was sent; now if absent. RFC 3339; with no offset, it is in UTC.")


class ImportedMessageSchema(NewMessageSchema):
    """A message to import, as the export has it."""

    message_id = fields.uuid("Its id.", required=True)


class ImportSchema(ma.Schema):
    """What an import has done."""

    stored = ma.fields.Integer(required=True, metadata={"description": "How many are new."})
    already_there = ma.fields.Integer(required=True, metadata={"description": "How many were there."})


class MessageChangesSchema(MessageSchema):
    """What to change of a message: `content`, `rating` or both. Other fields may be sent with the values they have."""

    def __init__(self) -> None:
        super().__init__(partial=True)


class MessagesQuerySchema(PageSchema):
    """Which messages to list."""

    chat_id = fields.uuid("Only those of this chat.", CHAT_ID)
    role = fields.choice("Only those written by an ai or a human.", "ai", "human")
    rating = fields.choice("Only those rated so; null: not rated.", "false", "null", "true")
    since = fields.time("Only those sent at this time or later.")
    until = fields.time("Only those sent before this time.")


class ChatsQuerySchema(ma.Schema):
    """Which chats to list."""

    after = fields.uuid("Only what follows this chat in the present order.", CHAT_ID)
    limit = fields.LimitField("At most so many.", 200, load_default=50)


class ChatSchema(ma.Schema):
    """A chat, in short."""

    chat_id = fields.uuid("Its id.", CHAT_ID, required=True)
    message_count = ma.fields.Integer(required=True, metadata={"description": "How many messages it has."})
    first_sent_at = fields.time("`sent_at` of the message stored first.", required=True)
    last_sent_at = fields.time("`sent_at` of the message stored last.", required=True)
    title = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The start of the first human message, on one line; null if there is none."},
    )


class WorkerSchema(ma.Schema):
    """A worker of the chat service."""

    worker_id = fields.uuid("An id that the worker chose for itself.", WORKER_ID, required=True)


class TurnsSchema(WorkerSchema):
    """Turns, by the ids of their human messages, and the worker that is at work on them."""

    message_ids = ma.fields.List(
        fields.uuid("The id of the human message.", MESSAGE_ID),
        required=True,
        validate=Length(min=1, max=10_000),
        metadata={"description": "The turns."},
    )
