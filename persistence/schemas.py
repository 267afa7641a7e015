"""The rules that the fields of requests follow, and what Swagger UI says of them."""

import re
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from marshmallow.validate import OneOf

from persistence.web.fields import BooleanField, LimitField, TextField, UUIDField

RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]((?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2})(\.[0-9]{1,6})?([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)
MESSAGE = {
    "message_id": "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21",
    "chat_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "content": "What is the capital of France?",
    "rating": None,
    "sent_at": "2026-11-23T16:04:05.120000+00:00",
    "role": "human",
}


class TimeField(ma.fields.Field[datetime]):
    """An RFC 3339 date-time; with no offset, it is in UTC. Loaded in UTC."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        match = RFC3339.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ma.ValidationError(
                "Not an RFC 3339 date-time, like 2026-11-23T16:04:05.12+00:00 (in a URL, + is written %2B)."
            )
        date, time, decimals, offset = match.groups()
        offset = "+00:00" if offset in (None, "Z", "z") else offset
        try:
            return datetime.fromisoformat(f"{date}T{time}{(decimals or '.0').ljust(7, '0')}{offset}").astimezone(UTC)
        except (ValueError, OverflowError):
            raise ma.ValidationError("There is no such time in the years 0001 to 9999 in UTC.") from None


def message_id(description: str, **kwargs: Any) -> UUIDField:
    """Make a field for the id of a message."""
    return UUIDField(metadata={"description": description, "example": MESSAGE["message_id"]}, **kwargs)


def chat_id(description: str, **kwargs: Any) -> UUIDField:
    """Make a field for the id of a chat."""
    return UUIDField(metadata={"description": description, "example": MESSAGE["chat_id"]}, **kwargs)


def content(**kwargs: Any) -> TextField:
    """Make a field for the text of a message."""
    description = "The text: 1 character at least, any Unicode but NUL and lone surrogates."
    return TextField(metadata={"description": description, "example": MESSAGE["content"]}, **kwargs)


def rating(**kwargs: Any) -> BooleanField:
    """Make a field for the rating of a message."""
    return BooleanField(
        allow_none=True,
        metadata={"description": "true: good, false: bad, null: not rated.", "example": None},
        **kwargs,
    )


def sent_at(description: str, **kwargs: Any) -> TimeField:
    """Make a field for the time of a message."""
    return TimeField(metadata={"description": description, "example": MESSAGE["sent_at"]}, **kwargs)


def role(**kwargs: Any) -> ma.fields.String:
    """Make a field for who wrote a message."""
    return ma.fields.String(
        validate=OneOf(["ai", "human"]),
        metadata={"description": "Who wrote it.", "example": MESSAGE["role"]},
        **kwargs,
    )


class MessageSchema(ma.Schema):
    """A message as it is stored."""

    message_id = message_id("Its id.", required=True)
    chat_id = chat_id("The conversation that it belongs to.", required=True)
    content = content(required=True)
    rating = rating(required=True)
    sent_at = sent_at("When it was sent, in UTC with six decimals.", required=True)
    role = role(required=True)


class NewMessageSchema(ma.Schema):
    """A message to store."""

    message_id = message_id("Its id; a fresh one if absent. Choose it yourself, and you can send the request again.")
    chat_id = chat_id("The conversation that it belongs to; any id that you choose.", required=True)
    content = content(required=True)
    rating = rating()
    sent_at = sent_at("When it was sent; now if absent. RFC 3339; with no offset, it is in UTC.")
    role = role(required=True)


class MessageChangesSchema(ma.Schema):
    """What to change of a message: `content`, `rating` or both. Other fields may be sent with the values they have."""

    message_id = message_id("Its id, as in the path.")
    chat_id = chat_id("As it is stored.")
    content = content()
    rating = rating()
    sent_at = sent_at("As it is stored.")
    role = role()


class MessagesQuerySchema(ma.Schema):
    """Which messages to list."""

    chat_id = chat_id("Only those of this conversation.")
    role = ma.fields.String(
        validate=OneOf(["ai", "human"]),
        metadata={"description": "Only those written by an ai or a human.", "example": "human"},
    )
    rating = ma.fields.String(
        validate=OneOf(["true", "false", "null"]),
        metadata={"description": "Only those rated so; null: not rated.", "example": "true"},
    )
    since = sent_at("Only those sent at this time or later.")
    until = sent_at("Only those sent before this time.")
    order = ma.fields.String(
        validate=OneOf(["asc", "desc"]),
        load_default="asc",
        metadata={
            "description": "asc: in the order in which they were stored; desc: the last one first.",
            "example": "asc",
        },
    )
    after = message_id("Only what follows this message in the same order.")
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


class ChatsQuerySchema(ma.Schema):
    """Which chats to list."""

    after = chat_id("Only what follows this chat's present place.")
    limit = LimitField(
        200,
        load_default=50,
        metadata={"description": "At most so many.", "type": "integer", "minimum": 1, "maximum": 200, "example": 50},
    )


class ChatSchema(ma.Schema):
    """A conversation, in short."""

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
            "description": "The start of the first human message, on one line; null: there is none.",
            "example": MESSAGE["content"],
        },
    )
