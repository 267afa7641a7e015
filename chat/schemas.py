"""The rules that the fields of requests follow, and what Swagger UI says of them."""

import marshmallow as ma
from marshmallow.validate import OneOf

from persistence.web.fields import BooleanField, LimitField, TextField, UUIDField

QUESTION = {
    "message_id": "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21",
    "chat_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "content": "What is the capital of France?",
    "rating": None,
    "sent_at": "2026-11-23T16:04:05.120000+00:00",
    "role": "human",
}
REPLY = QUESTION | {
    "message_id": "4d1f3c0a-9a0e-4b53-8f21-0d5c1f6a7b90",
    "content": "Paris.",
    "sent_at": "2026-11-23T16:04:06.480000+00:00",
    "role": "ai",
}


class TurnSchema(ma.Schema):
    """A message to the model."""

    content = TextField(
        required=True,
        metadata={
            "description": "What to say: 1 character at least, any Unicode but NUL and lone surrogates.",
            "example": QUESTION["content"],
        },
    )
    chat_id = UUIDField(
        metadata={
            "description": "The conversation to go on with; absent: a new one. It is in every answer.",
            "example": QUESTION["chat_id"],
        }
    )
    message_id = UUIDField(
        metadata={
            "description": "Its id; a fresh one if absent. Choose it yourself, and you can repeat the request.",
            "example": QUESTION["message_id"],
        }
    )
    stream = BooleanField(
        load_default=False,
        metadata={"description": "true: the reply comes as server-sent events, piece by piece.", "example": False},
    )


class MessageSchema(ma.Schema):
    """A message as it is stored."""

    message_id = UUIDField(required=True, metadata={"description": "Its id.", "example": REPLY["message_id"]})
    chat_id = UUIDField(required=True, metadata={"description": "Its conversation.", "example": REPLY["chat_id"]})
    content = TextField(required=True, metadata={"description": "The text.", "example": REPLY["content"]})
    rating = BooleanField(
        required=True,
        allow_none=True,
        metadata={"description": "true: good, false: bad, null: not rated.", "example": None},
    )
    sent_at = ma.fields.String(
        required=True,
        metadata={"description": "When it was stored, in UTC.", "example": REPLY["sent_at"], "format": "date-time"},
    )
    role = ma.fields.String(
        required=True,
        validate=OneOf(["ai", "human"]),
        metadata={"description": "Who wrote it.", "example": REPLY["role"]},
    )


class AnswerSchema(ma.Schema):
    """Both sides of a turn, as they are stored."""

    message = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The human's message."})
    reply = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The model's reply."})


class ChatQuerySchema(ma.Schema):
    """Which of the chat's messages to give."""

    order = ma.fields.String(
        validate=OneOf(["asc", "desc"]),
        metadata={
            "description": "asc: in the order in which they were stored (the default); desc: the last one first."
        },
    )
    after = UUIDField(
        metadata={
            "description": "Only what follows this message in the same order.",
            "example": QUESTION["message_id"],
        }
    )
    limit = LimitField(
        1000,
        metadata={
            "description": "At most so many, with a `Link` to the next page if there is one. Absent: all, streamed.",
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "example": 50,
        },
    )
