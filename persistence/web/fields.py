"""The fields that both services' schemas are made of; each loads one reading, and refuses any other."""

import re
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from flask import Flask
from flask_smorest import Api
from marshmallow.validate import Length, OneOf, Regexp
from werkzeug.routing import BaseConverter

UUID4 = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-5][0-9])?",
    re.IGNORECASE,
)
UUID_SCHEMA = {"format": "uuid", "pattern": f"^{UUID4}$"}
MESSAGE_ID, CHAT_ID = "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
MESSAGE = {
    "message_id": MESSAGE_ID,
    "chat_id": CHAT_ID,
    "content": "What is the capital of France?",
    "rating": None,
    "sent_at": "2026-11-23T16:04:05.120000+00:00",
    "role": "human",
}


class UUIDField(ma.fields.String):
    """A UUID of version 4 (RFC 9562) in the 8-4-4-4-12 form, in either case; loaded in lower case."""

    def __init__(self, description: str, example: str = MESSAGE_ID, **kwargs: Any) -> None:
        super().__init__(metadata=UUID_SCHEMA | {"description": description, "examples": [example]}, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(UUID4, value):
            raise ma.ValidationError("Not a UUID of version 4.")
        return value.lower()


class BooleanField(ma.fields.Boolean):
    """A JSON boolean, and nothing that merely looks like one."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("Must be true or false.")
        return value


class TimeField(ma.fields.DateTime):
    """An RFC 3339 date-time, in UTC if it has no offset; loaded in UTC."""

    def __init__(self, description: str, **kwargs: Any) -> None:
        super().__init__(metadata={"description": description, "examples": [MESSAGE["sent_at"]]}, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str) or not RFC3339.fullmatch(value):
            raise ma.ValidationError(
                "Not an RFC 3339 date-time, like 2026-11-23T16:04:05.12+00:00 (in a URL, + is written %2B)."
            )
        try:
            time = datetime.fromisoformat(value.upper())
            return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ma.ValidationError("There is no such time in the years 0001 to 9999 in UTC.") from None


class LimitField(ma.fields.Integer):
    """A whole number in decimal digits, from 1 to `most`."""

    def __init__(self, description: str, most: int, **kwargs: Any) -> None:
        self.most = most
        metadata = {"description": description, "minimum": 1, "maximum": most, "example": 50}
        super().__init__(metadata=metadata, **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        if not (re.fullmatch("[0-9]{1,9}", value) and 1 <= int(value) <= self.most):
            raise ma.ValidationError(f"Must be a whole number from 1 to {self.most}.")
        return int(value)


def content_field(description: str, **kwargs: Any) -> ma.fields.String:
    """Return a field for the text of a message, which PostgreSQL and UTF-8 can hold."""
    description += " 1 character at least, any Unicode but NUL and lone surrogates."
    metadata = {"description": description, "examples": [MESSAGE["content"]], "pattern": r"^[^\u0000]+$"}
    not_empty = Length(min=1, error="Must not be empty.")
    can_be_stored = Regexp(r"[^\0\ud800-\udfff]*\Z", error="Must hold no NUL character and no lone surrogate.")
    return ma.fields.String(validate=[not_empty, can_be_stored], metadata=metadata, **kwargs)


def choice(description: str, *values: str, **kwargs: Any) -> ma.fields.String:
    """Return a field for one of `values`."""
    metadata = {"description": description, "examples": [values[-1]]}
    return ma.fields.String(validate=OneOf(values), metadata=metadata, **kwargs)


class MessageSchema(ma.Schema):
    """A message as it is stored."""

    message_id = UUIDField(
        "Its id; if absent, a fresh one. Choose it yourself, and you can send it again.", required=True
    )
    chat_id = UUIDField("The chat that it belongs to; any id that you choose.", CHAT_ID, required=True)
    content = content_field("The text.", required=True)
    rating = BooleanField(
        required=True,
        allow_none=True,
        metadata={"description": "true: good, false: bad, null: not rated.", "examples": [None]},
    )
    sent_at = TimeField("When it was sent; if absent, now. RFC 3339, in UTC if it has no offset.", required=True)
    role = choice("Who wrote it.", "ai", "human", required=True)


class PageSchema(ma.Schema):
    """Which part of a list of messages to return."""

    order = choice("asc: in the order in which they were stored (default); desc: the last one first.", "desc", "asc")
    after = UUIDField("Only what follows this message in the same order.")
    limit = LimitField("At most so many, with a `Link` while there is more. Absent: all, streamed.", 1000)


class UUID4Converter(BaseConverter):
    """A UUID of version 4 in a path, passed to views in lower case; anything else is a 404."""

    regex = UUID4

    def to_python(self, value: str) -> str:
        """Return it as it is stored."""
        return value.lower()


def init_app(app: Flask, api: Api) -> None:
    """Make `uuid4` known to paths and to the OpenAPI document."""
    app.url_map.converters["uuid4"] = UUID4Converter
    path_schema = {"type": "string", "example": MESSAGE_ID} | UUID_SCHEMA
    api.register_converter(UUID4Converter, lambda _converter: path_schema)
