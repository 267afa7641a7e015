"""Messages for the tests: made, stored, and read back page by page."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import requests
from werkzeug.test import TestResponse

from tests.services import Service

ERROR_FIELDS = ["code", "status", "message"]


def new_id() -> str:
    return str(uuid.uuid4())


def new_message(**fields: Any) -> dict[str, Any]:
    return {"chat_id": new_id(), "content": "hello", "role": "human"} | fields


def store(service: Service, **fields: Any) -> dict[str, Any]:
    """Store a message, and return it as it was answered."""
    response = service.post("/messages/", json=new_message(**fields))
    assert response.status_code == 201, response.text
    message: dict[str, Any] = response.json()
    return message


def pages(service: Service, path: str, **params: Any) -> Iterator[list[dict[str, Any]]]:
    """Follow the Link headers from page to page."""
    response = service.get(path, params=params)
    while True:
        assert response.status_code == 200, response.text
        yield response.json()
        if "next" not in response.links:
            return
        response = service.get(response.links["next"]["url"])


def assert_error(response: requests.Response | TestResponse, code: int, *fields: str) -> None:
    """Expect the one form that every error has, which names exactly these fields."""
    assert response.status_code == code, response.text
    assert response.headers["Content-Type"] == "application/json"
    body = json.loads(response.text)
    assert list(body) == [*ERROR_FIELDS, *(["errors"] if fields else [])]
    assert body["code"] == code
    assert body["status"]
    assert body["message"].isprintable()
    assert body["message"].endswith(".")
    assert set(body.get("errors", {})) == set(fields)
