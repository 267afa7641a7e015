"""The kinds of fields that both services' schemas are made of; each loads one reading, and says no to any other."""

import re
from typing import Any

import marshmallow as ma
from flask import Flask
from werkzeug.routing import BaseConverter

from persistence.web.errors import ServiceApi

EXAMPLE = "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21"
UUID4 = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"


class UUIDField(ma.fields.Field[str]):
    """A UUID of version 4 (RFC 9562) in the 8-4-4-4-12 form, in either case; loaded in lower case."""

    pattern = re.compile(UUID4)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"pattern": f"^{UUID4}$", **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or not self.pattern.fullmatch(value):
            raise ma.ValidationError("Not a UUID of version 4.")
        return value.lower()


class TextField(ma.fields.Field[str]):
    """A string of one character at least that PostgreSQL and UTF-8 can hold."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"minLength": 1, "pattern": r"^[^\u0000]+$", **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise ma.ValidationError("Not a string.")
        if not value:
            raise ma.ValidationError("Must not be empty.")
        if "\0" in value or not _is_unicode(value):
            raise ma.ValidationError("Must hold no NUL character and no lone surrogate.")
        return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class BooleanField(ma.fields.Field[bool]):
    """A JSON boolean, and nothing that merely looks like one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("Must be true or false.")
        return value


class LimitField(ma.fields.Field[int]):
    """A whole number in decimal digits, from 1 to `most`."""

    pattern = re.compile("[0-9]{1,9}")

    def __init__(self, most: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.most = most

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not (self.pattern.fullmatch(value) and 1 <= int(value) <= self.most):
            raise ma.ValidationError(f"Must be a whole number from 1 to {self.most}.")
        return int(value)


class UUID4Converter(BaseConverter):
    """A UUID of version 4 in a path, given to views in lower case; anything else is a 404."""

    regex = UUID4

    def to_python(self, value: str) -> str:
        """Give it as it is stored."""
        return value.lower()


def init_app(app: Flask, api: ServiceApi) -> None:
    """Make `uuid4` known to paths, and the fields to the OpenAPI document."""
    app.url_map.converters["uuid4"] = UUID4Converter
    app.url_map.merge_slashes = False  # it would redirect
    path_schema = {"type": "string", "format": "uuid", "pattern": f"^{UUID4}$", "examples": [EXAMPLE]}
    api.register_converter(UUID4Converter, lambda _converter: path_schema)
    api.register_field(UUIDField, "string", "uuid")
    api.register_field(TextField, "string", None)
    api.register_field(BooleanField, "boolean", None)
    api.register_field(LimitField, "integer", None)
