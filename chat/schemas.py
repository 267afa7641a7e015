"""The schemas of requests and responses: the rules for fields, and what Swagger UI says of them."""

import marshmallow as ma

from chat import sse
from persistence.web import fields
from persistence.web.fields import CHAT_ID, MESSAGE, MessageSchema

REPLY = MESSAGE | {
    "message_id": "4d1f3c0a-9a0e-4b53-8f21-0d5c1f6a7b90",
    "content": "Paris.",
    "sent_at": "2026-11-23T16:04:06.480000+00:00",
    "role": "ai",
}
EVENTS = (
    sse.encode("message", MESSAGE) + sse.PING + sse.encode("delta", {"content": "Paris."}) + sse.encode("reply", REPLY)
).decode()
EVENT = {
    "type": "object",
    "description": "One of the events, as server-sent events have it; a comment, `: ping`, fills each silence.",
    "properties": {
        "event": {"type": "string", "enum": ["message", "delta", "reply", "error"], "description": "What it is."},
        "data": {"type": "string", "description": "A message, the piece, or an error, as JSON on one line."},
    },
    "required": ["event", "data"],
}


class TurnSchema(ma.Schema):
    """A message to the model."""

    content = fields.content_field("What to say.", required=True)
    chat_id = fields.UUIDField("The chat to go on with; absent: a new one. It is in every answer.", CHAT_ID)
    message_id = fields.UUIDField("Its id; if absent, a fresh one. Choose it yourself, and you can send it again.")
    stream = fields.BooleanField(
        load_default=False,
        metadata={"description": "true: the reply comes as server-sent events, piece by piece.", "examples": [False]},
    )


class AnswerSchema(ma.Schema):
    """Both sides of a turn, as they are stored."""

    message = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The human's message."})
    reply = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The model's reply."})
