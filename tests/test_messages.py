import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import pytest

from tests.messages import assert_error, new_id, new_message, store
from tests.services import Service

FIELDS = ["message_id", "chat_id", "content", "rating", "sent_at", "role"]
OTHERS = [{"role": "ai"}, {"chat_id": new_id()}, {"sent_at": "2020-01-01T00:00:00Z"}]


def put(service: Service, message: dict[str, Any], **changes: Any) -> Any:
    return service.request("PUT", f"/messages/{message['message_id']}", json=changes)


def read(service: Service, message: dict[str, Any]) -> Any:
    return service.get(f"/messages/{message['message_id']}")


def test_stores_a_message_and_answers_with_it(persistence: Service) -> None:
    message = new_message(message_id=new_id(), rating=True, sent_at="2026-11-23T16:04:05.12+02:00")
    response = persistence.post("/messages/", json=message)
    assert (response.status_code, response.headers["Location"]) == (201, f"/messages/{message['message_id']}")
    assert response.json() == message | {"sent_at": "2026-11-23T14:04:05.120000+00:00"}
    assert list(response.json()) == FIELDS
    assert read(persistence, message).json() == response.json()


def test_what_is_not_sent_has_a_default(persistence: Service) -> None:
    message = store(persistence)
    assert (uuid.UUID(message["message_id"]).version, message["rating"]) == (4, None)
    assert abs(datetime.fromisoformat(message["sent_at"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_repeat_gets_the_stored_message(persistence: Service) -> None:
    message = new_message(message_id=new_id(), sent_at="2026-11-23T16:00:00Z")
    first = persistence.post("/messages/", json=message)
    same = {"message_id": message["message_id"].upper(), "sent_at": "2026-11-23T17:00:00.000+01:00", "rating": True}
    second = persistence.post("/messages/", json=message | same)
    assert (first.status_code, second.status_code) == (201, 200)
    assert (second.json(), second.headers["Location"]) == (first.json(), first.headers["Location"])


@pytest.mark.parametrize("change", [{"content": "other"}, *OTHERS])
def test_a_taken_id_is_a_conflict(persistence: Service, change: dict[str, Any]) -> None:
    message = store(persistence)
    assert_error(persistence.post("/messages/", json=message | change), 409)
    assert read(persistence, message).json() == message


def test_of_twenty_messages_at_once_with_one_id_one_is_stored(persistence: Service) -> None:
    one, together = new_message(message_id=new_id(), content="one"), Barrier(20)

    def send(content: str) -> tuple[str, int]:
        together.wait()
        return content, persistence.post("/messages/", json=one | {"content": content}).status_code

    with ThreadPoolExecutor(20) as pool:
        answers = Counter(pool.map(send, ["one", "other"] * 10))
    stored = read(persistence, one).json()["content"]
    refused = {"one": "other", "other": "one"}[stored]
    assert answers == {(stored, 201): 1, (stored, 200): 9, (refused, 409): 10}


@pytest.mark.parametrize("change", [{"content": "new"}, {"rating": False}, {"content": "x", "rating": None}])
def test_changes_what_is_sent_and_nothing_else(persistence: Service, change: dict[str, Any]) -> None:
    message = store(persistence, rating=True, content="old")
    later = store(persistence, chat_id=message["chat_id"])
    response = put(persistence, message, **change)
    assert (response.status_code, response.json()) == (200, message | change)
    assert list(response.json()) == FIELDS
    listed = persistence.get("/messages/", params={"chat_id": message["chat_id"]}).json()
    assert listed == [message | change, later]


def test_a_message_can_be_put_back_whole(persistence: Service) -> None:
    message = store(persistence)
    edited = message | {"content": "edited", "rating": False}
    spelled = {"message_id": message["message_id"].upper(), "sent_at": message["sent_at"].replace("+00:00", "Z")}
    response = put(persistence, message, **edited | spelled)
    assert (response.status_code, response.json()) == (200, edited)
    assert_error(persistence.post("/messages/", json=message), 409)  # what was stored first is no more


@pytest.mark.parametrize("change", [{"message_id": new_id()}, *OTHERS, OTHERS[0] | OTHERS[1] | OTHERS[2]])
def test_a_fixed_field_can_not_be_changed(persistence: Service, change: dict[str, Any]) -> None:
    message = store(persistence)
    assert_error(put(persistence, message, **message | change | {"content": "new"}), 422, *change)
    assert_error(put(persistence, message, chat_id=message["chat_id"]), 422, "content", "rating")
    assert read(persistence, message).json() == message


def test_a_deleted_message_is_gone_and_can_be_stored_again(persistence: Service) -> None:
    message = store(persistence)
    path = f"/messages/{message['message_id']}"
    response = persistence.request("DELETE", path)
    assert (response.status_code, response.content, response.headers.get("Content-Type")) == (204, b"", None)
    gone = [persistence.request("DELETE", path), read(persistence, message), put(persistence, message, rating=True)]
    assert [response.status_code for response in gone] == [404, 404, 404]
    assert persistence.post("/messages/", json=message).status_code == 201
