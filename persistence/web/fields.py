"""The fields that both services' schemas are made of; each loads one reading, and refuses any other."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from flask import Flask
from flask_smorest import Api
from marshmallow.validate import Length, OneOf
from werkzeug.routing import BaseConverter

UUID4 = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
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


class UUIDField(ma.fields.Field[str]):
    """A UUID of version 4 (RFC 9562) in the 8-4-4-4-12 form, in either case; loaded in lower case."""

    pattern = re.compile(UUID4)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not self.pattern.fullmatch(value):
            raise ma.ValidationError("Not a UUID of version 4.")
        return value.lower()


class TextField(ma.fields.Field[str]):
    """A string of one character at least that PostgreSQL and UTF-8 can hold."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise ma.ValidationError("Not a string.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ma.ValidationError("Must hold no lone surrogate.") from None
        if "\0" in value:
            raise ma.ValidationError("Must hold no NUL character.")
        return value


class BooleanField(ma.fields.Field[bool]):
    """A JSON boolean, and nothing that merely looks like one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("Must be true or false.")
        return value


class TimeField(ma.fields.Field[datetime]):
    """An RFC 3339 date-time, in UTC if it has no offset; loaded in UTC."""

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


class LimitField(ma.fields.Field[int]):
    """A whole number in decimal digits, from 1 to `most`."""

    pattern = re.compile("[0-9]{1,9}")

    def __init__(self, most: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most = most
        self.metadata = {"minimum": 1, "maximum": most, "example": 50, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not (self.pattern.fullmatch(value) and 1 <= int(value) <= self.most):
            raise ma.ValidationError(f"Must be a whole number from 1 to {self.most}.")
        return int(value)


def message_id(description: str, **kwargs: Any) -> UUIDField:
    """Return a field for the id of a message."""
    return UUIDField(metadata=_uuid(description, "message_id"), **kwargs)


def chat_id(description: str, **kwargs: Any) -> UUIDField:
    """Return a field for the id of a chat."""
    return UUIDField(metadata=_uuid(description, "chat_id"), **kwargs)


def _uuid(description: str, name: str) -> Mapping[str, Any]:
    return {"description": description, "example": MESSAGE[name], "pattern": f"^{UUID4}$"}


def content(description: str = "The text.", **kwargs: Any) -> TextField:
    """Return a field for the text of a message."""
    description += " 1 character at least, any Unicode but NUL and lone surrogates."
    metadata = {"description": description, "example": MESSAGE["content"], "pattern": r"^[^\u0000]+$"}
    return TextField(validate=Length(min=1, error="Must not be empty."), metadata=metadata, **kwargs)


def rating(**kwargs: Any) -> BooleanField:
    """Return a field for the rating of a message."""
    metadata = {"description": "true: good, false: bad, null: not rated.", "example": None}
    return BooleanField(allow_none=True, metadata=metadata, **kwargs)


def sent_at(description: str, **kwargs: Any) -> TimeField:
    """Return a field for the time of a message."""
    return TimeField(metadata={"description": description, "example": MESSAGE["sent_at"]}, **kwargs)


def choice(description: str, *values: str, **kwargs: Any) -> ma.fields.String:
    """Return a field for one of `values`."""
    metadata = {"description": description, "example": values[-1]}
    return ma.fields.String(validate=OneOf(values), metadata=metadata, **kwargs)


class MessageSchema(ma.Schema):
    """A message as it is stored."""

    message_id = message_id("Its id.", required=True)
    chat_id = chat_id("The chat that it belongs to.", required=True)
    content = content(required=True)
    rating = rating(required=True)
    sent_at = sent_at("When it was sent, in UTC with six decimals.", required=True)
    role = choice("Who wrote it.", "ai", "human", required=True)


class PageSchema(ma.Schema):
    """Which part of a list of messages to return."""

    order = choice("asc: in the order in which they were stored (default); desc: the last one first.", "desc", "asc")
    after = message_id("Only what follows this message in the same order.")
    limit = LimitField(
        1000, metadata={"description": "At most so many, with a `Link` while there is more. Absent: all, streamed."}
    )


class UUID4Converter(BaseConverter):
    """A UUID of version 4 in a path, passed to views in lower case; anything else is a 404."""

    regex = UUID4

    def to_python(self, value: str) -> str:
        """Return it as it is stored."""
        return value.lower()


def init_app(app: Flask, api: Api) -> None:
    """Make `uuid4` known to paths, and the fields to the OpenAPI document."""
    app.url_map.converters["uuid4"] = UUID4Converter
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # neither redirects
    path_schema = {"type": "string", "format": "uuid", "pattern": f"^{UUID4}$", "example": MESSAGE["message_id"]}
    api.register_converter(UUID4Converter, lambda _converter: path_schema)
    for field, kind, form in (
        (UUIDField, "string", "uuid"),
        (TextField, "string", None),
        (BooleanField, "boolean", None),
        (TimeField, "string", "date-time"),
        (LimitField, "integer", None),
    ):
        api.register_field(field, kind, form)
