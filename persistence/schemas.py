"""The schemas of requests and responses: the rules for fields, and what Swagger UI says of them."""

import json

import marshmallow as ma
from marshmallow.validate import Length

from persistence.web.fields import (
    MESSAGE,
    LimitField,
    PageSchema,
    UUIDField,
    chat_id,
    choice,
    content,
    message_id,
    rating,
    sent_at,
)

WORKER_ID = "c1f6a3de-1b0c-4a57-9a3e-2f8d1c5b7e60"


class NewMessageSchema(ma.Schema):
    """A message to store."""

    message_id = message_id("Its id; a fresh one if absent. Choose it yourself, and you can send the request again.")
    chat_id = chat_id("The chat that it belongs to; any id that you choose.", required=True)
    content = content(required=True)
    rating = rating()
    sent_at = sent_at("When it was sent; now if absent. RFC 3339; with no offset, it is in UTC.")
    role = choice("Who wrote it.", "ai", "human", required=True)


class ImportedMessageSchema(NewMessageSchema):
    """A message to import, as the export has it."""

    message_id = message_id("Its id.", required=True)


class ImportSchema(ma.Schema):
    """What an import has done."""

    stored = ma.fields.Integer(required=True, metadata={"description": "How many are new.", "example": 1})
    already_there = ma.fields.Integer(required=True, metadata={"description": "How many were there.", "example": 0})


class MessageChangesSchema(ma.Schema):
    """What to change of a message: `content`, `rating` or both. Other fields may be sent with the values they have."""

    message_id = message_id("Its id, as in the path.")
    chat_id = chat_id("As it is stored.")
    content = content("The new text.")
    rating = rating()
    sent_at = sent_at("As it is stored.")
    role = choice("As it is stored.", "ai", "human")


class MessagesQuerySchema(PageSchema):
    """Which messages to list."""

    chat_id = chat_id("Only those of this chat.")
    role = choice("Only those written by an ai or a human.", "ai", "human")
    rating = choice("Only those rated so; null: not rated.", "false", "null", "true")
    since = sent_at("Only those sent at this time or later.")
    until = sent_at("Only those sent before this time.")


class ChatsQuerySchema(ma.Schema):
    """Which chats to list."""

    after = chat_id("Only what follows this chat in the present order.")
    limit = LimitField(200, load_default=50, metadata={"description": "At most so many."})


class ChatSchema(ma.Schema):
    """A chat, in short."""

    chat_id = chat_id("Its id.", required=True)
    message_count = ma.fields.Integer(
        required=True, metadata={"description": "How many messages it has.", "example": 2}
    )
    first_sent_at = sent_at("`sent_at` of the message stored first.", required=True)
    last_sent_at = sent_at("`sent_at` of the message stored last.", required=True)
    title = ma.fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The start of the first human message, on one line; null if there is none.",
            "example": "What is the capital of France?",
        },
    )


class WorkerSchema(ma.Schema):
    """A worker of the chat service."""

    worker_id = UUIDField(
        required=True, metadata={"description": "An id that the worker chose for itself.", "example": WORKER_ID}
    )


class TurnsSchema(WorkerSchema):
    """Turns, by the ids of their human messages, and the worker that is at work on them."""

    message_ids = ma.fields.List(
        message_id("The id of the human message."),
        required=True,
        validate=Length(min=1, max=10_000),
        metadata={"description": "The turns.", "example": [MESSAGE["message_id"]]},
    )


NEW_MESSAGE = {name: MESSAGE[name] for name in ("chat_id", "content", "role")}
NEW_MESSAGES = {
    "required": True,
    "description": "The message to store, or the messages to import.",
    "content": {
        "application/json": {"schema": NewMessageSchema, "example": NEW_MESSAGE},
        "application/x-ndjson": {
            "schema": {"type": "string", "description": "One message a line; `message_id` is required."},
            "example": f"{json.dumps(MESSAGE)}\n",
        },
    },
}
