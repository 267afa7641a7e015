import uuid
from typing import Any

import pytest

from tests.services import Service


def new_message(**fields: Any) -> dict[str, Any]:
    return {"chat_id": str(uuid.uuid4()), "content": "hello", "role": "human"} | fields


def test_stores_a_message_and_answers_with_it(persistence: Service) -> None:
    message = new_message(message_id=str(uuid.uuid4()), rating=True, sent_at="2026-11-23T16:04:05.12+02:00")
    response = persistence.post("/messages/", json=message)
    assert response.status_code == 201
    assert response.headers["Location"] == f"/messages/{message['message_id']}"
    assert response.json() == message | {"sent_at": "2026-11-23T14:04:05.120000+00:00"}
    assert list(response.json()) == ["message_id", "chat_id", "content", "rating", "sent_at", "role"]
    assert persistence.get(response.headers["Location"]).json() == response.json()


def test_a_repeat_gets_the_stored_message(persistence: Service) -> None:
    message = new_message(message_id=str(uuid.uuid4()))
    first = persistence.post("/messages/", json=message)
    second = persistence.post("/messages/", json=message | {"rating": True})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    assert second.headers["Location"] == first.headers["Location"]


@pytest.mark.parametrize(
    "change",
    [{"content": "other"}, {"role": "ai"}, {"chat_id": str(uuid.uuid4())}, {"sent_at": "2020-01-01T00:00:00Z"}],
)
def test_a_taken_id_is_a_conflict(persistence: Service, change: dict[str, Any]) -> None:
    message = new_message(message_id=str(uuid.uuid4()))
    stored = persistence.post("/messages/", json=message).json()
    assert persistence.post("/messages/", json=message | change).status_code == 409
    assert persistence.get(f"/messages/{message['message_id']}").json() == stored
