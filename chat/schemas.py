"""The schemas of requests and responses: the rules for fields, and what Swagger UI says of them."""

import marshmallow as ma

from persistence.web.fields import MESSAGE, BooleanField, MessageSchema, chat_id, content, message_id

REPLY = MESSAGE | {
    "message_id": "4d1f3c0a-9a0e-4b53-8f21-0d5c1f6a7b90",
    "content": "Paris.",
    "sent_at": "2026-11-23T16:04:06.480000+00:00",
    "role": "ai",
}
EVENTS = """\
event: message
data: {"message_id":"0b0d2f6e-…","chat_id":"7c9e6679-…","content":"What is the capital of France?",…}

event: delta
data: {"content":"Par"}

: ping

event: delta
data: {"content":"is."}

event: reply
data: {"message_id":"4d1f3c0a-…","chat_id":"7c9e6679-…","content":"Paris.",…}

"""
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

    content = content("What to say.", required=True)
    chat_id = chat_id("The chat to go on with; absent: a new one. It is in every answer.")
    message_id = message_id("Its id; a fresh one if absent. Choose it yourself, and you can send the request again.")
    stream = BooleanField(
        load_default=False,
        metadata={"description": "true: the reply comes as server-sent events, piece by piece.", "example": False},
    )


class AnswerSchema(ma.Schema):
    """Both sides of a turn, as they are stored."""

    message = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The human's message."})
    reply = ma.fields.Nested(MessageSchema, required=True, metadata={"description": "The model's reply."})
