import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.messages import assert_error, new_id, new_message, store
from tests.services import Service

FIELDS = ["message_id", "chat_id", "content", "rating", "sent_at", "role"]


def test_stores_a_message_and_answers_with_it(persistence: Service) -> None:
    message = new_message(message_id=new_id(), rating=True, sent_at="2026-11-23T16:04:05.12+02:00")
    response = persistence.post("/messages/", json=message)
    assert response.status_code == 201
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Location"] == f"/messages/{message['message_id']}"
    assert response.json() == message | {"sent_at": "2026-11-23T14:04:05.120000+00:00"}
    assert list(response.json()) == FIELDS
    assert persistence.get(response.headers["Location"]).json() == response.json()


def test_what_is_not_sent_has_a_default(persistence: Service) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    message = store(persistence)
    assert uuid.UUID(message["message_id"]).version == 4
    assert message["rating"] is None
    assert before < datetime.fromisoformat(message["sent_at"]) < datetime.now(UTC) + timedelta(seconds=1)
    assert message["sent_at"].endswith("+00:00")
    assert len(message["sent_at"]) == len("2026-11-23T16:04:05.120000+00:00")


def test_a_repeat_gets_the_stored_message(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    first = persistence.post("/messages/", json=message)
    second = persistence.post("/messages/", json=message | {"rating": True})
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    assert second.headers["Location"] == first.headers["Location"]


def test_a_repeat_may_write_the_same_in_another_way(persistence: Service) -> None:
    message = new_message(message_id=new_id(), sent_at="2026-11-23T16:00:00Z")
    first = persistence.post("/messages/", json=message)
    other = {"message_id": message["message_id"].upper(), "sent_at": "2026-11-23T17:00:00.000+01:00"}
    second = persistence.post("/messages/", json=message | other)
    assert (second.status_code, second.json()) == (200, first.json())


@pytest.mark.parametrize(
    "change",
    [{"content": "other"}, {"role": "ai"}, {"chat_id": new_id()}, {"sent_at": "2020-01-01T00:00:00Z"}],
)
def test_a_taken_id_is_a_conflict(persistence: Service, change: dict[str, Any]) -> None:
    message = new_message(message_id=new_id())
    stored = persistence.post("/messages/", json=message).json()
    assert_error(persistence.post("/messages/", json=message | change), 409)
    assert persistence.get(f"/messages/{message['message_id']}").json() == stored


def test_of_twenty_sendings_at_once_one_is_stored(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    together = threading.Barrier(20)

    def send(_: int) -> tuple[int, str]:
        together.wait()
        response = persistence.post("/messages/", json=message)
        return response.status_code, response.text

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert sorted(status for status, _ in answers) == [200] * 19 + [201]
    assert len({text for _, text in answers}) == 1


def test_of_twenty_different_messages_at_once_with_one_id_one_is_stored(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    together = threading.Barrier(20)

    def send(number: int) -> int:
        together.wait()
        return persistence.post("/messages/", json=message | {"content": f"{number}"}).status_code

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(send, range(20))) == [201] + [409] * 19


@pytest.mark.parametrize("name", ["chat_id", "content", "role"])
def test_a_required_field_is_missed(persistence: Service, name: str) -> None:
    message = new_message()
    del message[name]
    assert_error(persistence.post("/messages/", json=message), 422, name)


@pytest.mark.parametrize("name", ["message_id", "chat_id", "content", "sent_at", "role"])
def test_null_is_only_for_rating(persistence: Service, name: str) -> None:
    stored = store(persistence)
    assert_error(persistence.post("/messages/", json=new_message() | {name: None}), 422, name)
    assert_error(
        persistence.request("PUT", f"/messages/{stored['message_id']}", json={"rating": True, name: None}), 422, name
    )
    assert persistence.post("/messages/", json=new_message(rating=None)).status_code == 201


@pytest.mark.parametrize("name", ["id", "seq", "Content", "content ", "_schema", "", "rating\u0000", "\ud800"])
def test_an_unknown_field_is_refused(persistence: Service, name: str) -> None:
    assert_error(persistence.post("/messages/", json=new_message(**{name: "x"})), 422, name)


def test_all_wrong_fields_are_named_at_once(persistence: Service) -> None:
    message = {"message_id": 1, "chat_id": 1, "content": 1, "rating": 1, "sent_at": 1, "role": 1}
    assert_error(persistence.post("/messages/", json=message), 422, *message)


@pytest.mark.parametrize("content", ["", 1, True, 1.5, ["a"], {"a": "b"}, "a\0b", "\ud800", "a\udfffb", "\udc00\ud800"])
def test_content_that_can_not_be_held(persistence: Service, content: Any) -> None:
    stored = store(persistence)
    assert_error(persistence.post("/messages/", json=new_message(content=content)), 422, "content")
    assert_error(
        persistence.request("PUT", f"/messages/{stored['message_id']}", json={"content": content}), 422, "content"
    )


@pytest.mark.parametrize(
    "content", [" ", "\n", "\x01\x02\x7f", "\\.", '"', "\u2028\x85", "\ufeff\uffff", "😀 \U0010ffff", "e\u0301", "{}%s"]
)
def test_content_that_can_be_held(persistence: Service, content: str) -> None:
    message = store(persistence, content=content)
    assert message["content"] == content
    assert persistence.get(f"/messages/{message['message_id']}").json() == message
    assert persistence.get("/messages/", params={"chat_id": message["chat_id"]}).json() == [message]
    assert persistence.get("/messages/", params={"chat_id": message["chat_id"], "limit": 1}).json() == [message]


@pytest.mark.parametrize("rating", ["yes", "true", "null", "", 1, 0, 1.0, -1, [], {}, [True]])
def test_a_rating_is_a_boolean_or_null(persistence: Service, rating: Any) -> None:
    stored = store(persistence, rating=True)
    assert_error(persistence.post("/messages/", json=new_message(rating=rating)), 422, "rating")
    assert_error(
        persistence.request("PUT", f"/messages/{stored['message_id']}", json={"rating": rating}), 422, "rating"
    )
    assert persistence.get(f"/messages/{stored['message_id']}").json() == stored


@pytest.mark.parametrize(
    "role", ["AI", "Human", "human ", "user", "assistant", "", 1, True, ["ai"], {}, "ai\0", "\ud800"]
)
def test_a_role_is_ai_or_human(persistence: Service, role: Any) -> None:
    assert_error(persistence.post("/messages/", json=new_message(role=role)), 422, "role")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        0,
        None,
        [],
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",  # version 1
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "0b0d2f6e-3c51-4f0a-ca64-5f1a3c0f7e21",  # another variant
        "0b0d2f6e3c514f0a9a645f1a3c0f7e21",
        "{0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21}",
        "urn:uuid:0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21",
        " 0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21",
        "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21\n",
        "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e2",
        "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e2g",
        "\u0660b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21",
        "0b0d-2f6e3c51-4f0a-9a64-5f1a3c0f7e21",
    ],
)
def test_an_id_is_a_uuid_of_version_4(persistence: Service, value: Any) -> None:
    assert_error(persistence.post("/messages/", json=new_message(chat_id=value)), 422, "chat_id")
    assert_error(persistence.post("/messages/", json=new_message(message_id=value)), 422, "message_id")


def test_ids_are_answered_in_lower_case(persistence: Service) -> None:
    message_id, chat_id = new_id(), new_id()
    message = store(persistence, message_id=message_id.upper(), chat_id=chat_id.upper())
    assert (message["message_id"], message["chat_id"]) == (message_id, chat_id)
    assert persistence.get(f"/messages/{message_id.upper()}").json() == message
    assert persistence.get("/messages/", params={"chat_id": chat_id.upper()}).json() == [message]
    assert persistence.request("PUT", f"/messages/{message_id}", json=message | {"message_id": message_id.upper()}).ok


@pytest.mark.parametrize(
    ("given", "answered"),
    [
        ("2026-11-23T16:04:05Z", "2026-11-23T16:04:05.000000+00:00"),
        ("2026-11-23t16:04:05z", "2026-11-23T16:04:05.000000+00:00"),
        ("2026-11-23T16:04:05", "2026-11-23T16:04:05.000000+00:00"),
        ("2026-11-23T16:04:05.1", "2026-11-23T16:04:05.100000+00:00"),
        ("2026-11-23T16:04:05.000001Z", "2026-11-23T16:04:05.000001+00:00"),
        ("2026-11-23T16:04:05.999999-00:00", "2026-11-23T16:04:05.999999+00:00"),
        ("2026-11-23T00:00:00+23:59", "2026-11-22T00:01:00.000000+00:00"),
        ("2026-11-23T23:59:59-05:30", "2026-11-24T05:29:59.000000+00:00"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999+00:00"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000000+00:00"),
    ],
)
def test_a_time_that_is_taken(persistence: Service, given: str, answered: str) -> None:
    message = store(persistence, sent_at=given)
    assert message["sent_at"] == answered
    assert persistence.get("/messages/", params={"chat_id": message["chat_id"], "since": given}).json() == [message]
    assert persistence.get("/messages/", params={"chat_id": message["chat_id"], "until": given}).json() == []


@pytest.mark.parametrize(
    "given",
    [
        "",
        "now",
        "infinity",
        "2026-11-23",
        "2026-11-23 16:04:05Z",
        "2026-11-23T16:04Z",
        "2026-11-23T16Z",
        "20261123T160405Z",
        "2026-W48-1T16:04:05Z",
        "2026-327T16:04:05Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T23:60:00Z",
        "2026-11-23T23:59:61Z",
        "2026-11-23T16:04:05.1234567Z",
        "2026-11-23T16:04:05.Z",
        "2026-11-23T16:04:05,5Z",
        "2026-11-23T16:04:05+0100",
        "2026-11-23T16:04:05+01",
        "2026-11-23T16:04:05+24:00",
        "2026-11-23T16:04:05+01:60",
        "2026-11-23T16:04:05+01:00:00",
        "2026-11-23T16:04:05 +01:00",
        "2026-11-23T16:04:05Z ",
        "2026-11-23T16:04:05Z\n",
        "2026-11-23T16:04:05 UTC",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "-2026-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "٢٠٢٦-11-23T16:04:05Z",
        "1795449845",
        "2026-11-23T16:04:05Z\0",
    ],
)
def test_a_time_that_is_refused(persistence: Service, given: str) -> None:
    assert_error(persistence.post("/messages/", json=new_message(sent_at=given)), 422, "sent_at")
    assert_error(persistence.get("/messages/", params={"since": given}), 422, "since")
    assert_error(persistence.get("/messages/", params={"until": given}), 422, "until")


@pytest.mark.parametrize("given", [0, 1795449845, 1.5, True, [], {}, ["2026-11-23T16:04:05Z"]])
def test_a_time_is_a_string(persistence: Service, given: Any) -> None:
    assert_error(persistence.post("/messages/", json=new_message(sent_at=given)), 422, "sent_at")


@pytest.mark.parametrize(
    "change",
    [{"content": "new"}, {"rating": True}, {"rating": False}, {"rating": None}, {"content": "new", "rating": False}],
)
def test_changes_what_is_sent_and_nothing_else(persistence: Service, change: dict[str, Any]) -> None:
    message = store(persistence, rating=True, content="old")
    path = f"/messages/{message['message_id']}"
    response = persistence.request("PUT", path, json=change)
    assert (response.status_code, response.json()) == (200, message | change)
    assert list(response.json()) == FIELDS
    assert persistence.get(path).json() == message | change


def test_a_message_can_be_put_back_whole(persistence: Service) -> None:
    message = store(persistence)
    edited = message | {"content": "edited", "rating": False}
    response = persistence.request("PUT", f"/messages/{message['message_id']}", json=edited)
    assert (response.status_code, response.json()) == (200, edited)


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": new_id()},
        {"chat_id": new_id()},
        {"role": "ai"},
        {"sent_at": "2020-01-01T00:00:00Z"},
        {"chat_id": new_id(), "role": "ai", "sent_at": "2020-01-01T00:00:00Z"},
    ],
)
def test_a_fixed_field_can_not_be_changed(persistence: Service, change: dict[str, Any]) -> None:
    message = store(persistence)
    path = f"/messages/{message['message_id']}"
    assert_error(persistence.request("PUT", path, json=message | change | {"content": "new"}), 422, *change)
    assert persistence.get(path).json() == message


@pytest.mark.parametrize("fixed", [[], ["message_id"], ["chat_id", "role", "sent_at", "message_id"]])
def test_a_change_needs_content_or_rating(persistence: Service, fixed: list[str]) -> None:
    message = store(persistence)
    changes = {name: message[name] for name in fixed}
    assert_error(
        persistence.request("PUT", f"/messages/{message['message_id']}", json=changes), 422, "content", "rating"
    )


def test_a_change_keeps_the_message_in_its_place(persistence: Service) -> None:
    chat_id = new_id()
    messages = [store(persistence, chat_id=chat_id) for _ in range(3)]
    persistence.request("PUT", f"/messages/{messages[0]['message_id']}", json={"content": "new"})
    listed = persistence.get("/messages/", params={"chat_id": chat_id}).json()
    assert [message["message_id"] for message in listed] == [message["message_id"] for message in messages]


def test_a_repeat_after_a_change_is_a_conflict(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    persistence.post("/messages/", json=message)
    persistence.request("PUT", f"/messages/{message['message_id']}", json={"content": "new"})
    assert_error(persistence.post("/messages/", json=message), 409)


def test_a_deleted_message_is_gone(persistence: Service) -> None:
    path = f"/messages/{store(persistence)['message_id']}"
    response = persistence.request("DELETE", path)
    assert (response.status_code, response.content) == (204, b"")
    assert "Content-Type" not in response.headers
    assert_error(persistence.request("DELETE", path), 404)
    assert_error(persistence.get(path), 404)
    assert_error(persistence.request("PUT", path, json={"rating": True}), 404)


def test_a_deleted_message_can_be_stored_again(persistence: Service) -> None:
    message = store(persistence)
    persistence.request("DELETE", f"/messages/{message['message_id']}")
    assert persistence.post("/messages/", json=message).status_code == 201


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "value",
    [
        new_id(),
        "1",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "0b0d2f6e3c514f0a9a645f1a3c0f7e21",
        "{0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21}",
        "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21%0a",
        "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21/x",
        "%00",
        "'%20OR%20'1'='1",
    ],
)
def test_what_is_not_there_is_not_found(persistence: Service, method: str, value: str) -> None:
    assert_error(persistence.request(method, f"/messages/{value}", json={"rating": True}), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_one_message_takes_no_query(persistence: Service, method: str) -> None:
    path = f"/messages/{store(persistence)['message_id']}"
    assert_error(persistence.request(method, f"{path}?limit=1", json={"rating": True}), 422, "limit")
    assert persistence.get(path).json()["rating"] is None


def test_storing_takes_no_query(persistence: Service) -> None:
    assert_error(persistence.post("/messages/?role=ai", json=new_message()), 422, "role")


@pytest.mark.parametrize("end", ["", "/"])
def test_a_trailing_slash_or_none(persistence: Service, end: str) -> None:
    stored = persistence.post(f"/messages{end}", json=new_message(), allow_redirects=False)
    path = f"/messages/{stored.json()['message_id']}{end}"
    answers = [
        stored,
        persistence.get(f"/messages{end}?limit=1", allow_redirects=False),
        persistence.get(path, allow_redirects=False),
        persistence.request("PUT", path, json={"rating": True}, allow_redirects=False),
        persistence.request("DELETE", path, allow_redirects=False),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200, 204]


def test_head_answers_like_get_without_a_body(persistence: Service) -> None:
    path = f"/messages/{store(persistence)['message_id']}"
    for target in (path, "/messages/?limit=1", f"/messages/{new_id()}"):
        head, get = persistence.request("HEAD", target), persistence.get(target)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/messages/", {"GET", "HEAD", "OPTIONS", "POST"}),
        (f"/messages/{new_id()}", {"DELETE", "GET", "HEAD", "OPTIONS", "PUT"}),
    ],
)
def test_options_says_what_a_path_takes(persistence: Service, path: str, methods: set[str]) -> None:
    response = persistence.request("OPTIONS", path)
    assert response.ok
    assert set(response.headers["Allow"].split(", ")) == methods
