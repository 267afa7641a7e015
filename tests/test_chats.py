from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.messages import assert_error, new_id, new_message, pages, store
from tests.services import Service

FIELDS = ["chat_id", "message_count", "first_sent_at", "last_sent_at", "title"]


def find(service: Service, chat_id: str) -> dict[str, Any] | None:
    """Give a chat from the list, or None."""
    found = [chat for page in pages(service, "/chats/", limit=200) for chat in page if chat["chat_id"] == chat_id]
    assert len(found) < 2
    return found[0] if found else None


def title(service: Service, *contents: str) -> Any:
    chat_id = new_id()
    for content in contents:
        store(service, chat_id=chat_id, content=content)
    chat = find(service, chat_id)
    assert chat is not None
    return chat["title"]


def test_tells_of_a_chat(persistence: Service) -> None:
    chat_id = new_id()
    store(persistence, chat_id=chat_id, role="ai", content="Welcome!", sent_at="2026-11-23T16:00:00.5+01:00")
    store(persistence, chat_id=chat_id, content="Hello?", sent_at="2026-11-24T16:00:00Z")
    store(persistence, chat_id=chat_id, content="Anyone?", sent_at="2026-11-22T16:00:00Z")
    chat = persistence.get("/chats/").json()[0]
    assert list(chat) == FIELDS
    assert chat == {
        "chat_id": chat_id,
        "message_count": 3,
        "first_sent_at": "2026-11-23T15:00:00.500000+00:00",
        "last_sent_at": "2026-11-22T16:00:00.000000+00:00",
        "title": "Hello?",
    }


def test_the_chat_with_the_message_stored_last_comes_first(persistence: Service) -> None:
    chat_ids = [new_id() for _ in range(3)]
    for chat_id in (*chat_ids, chat_ids[0]):
        store(persistence, chat_id=chat_id, sent_at="2000-01-01T00:00:00Z")
    found = [chat["chat_id"] for chat in persistence.get("/chats/?limit=3").json()]
    assert found == [chat_ids[0], chat_ids[2], chat_ids[1]]


def test_a_chat_goes_back_when_its_last_message_is_deleted(persistence: Service) -> None:
    first, second = new_id(), new_id()
    store(persistence, chat_id=first)
    store(persistence, chat_id=second)
    last = store(persistence, chat_id=first)
    persistence.request("DELETE", f"/messages/{last['message_id']}")
    assert [chat["chat_id"] for chat in persistence.get("/chats/?limit=2").json()] == [second, first]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Hello", "Hello"),
        ("  Hello,\t\n\r\n  world \n", "Hello, world"),
        *((f"a{character}b", "a b") for character in "\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80),
        ("😀" * 100, "😀" * 80),
        ("x" * 79 + " y", "x" * 79),
        ('"\\/\x01', '"\\/\x01'),
        ("%s {} <b>", "%s {} <b>"),
        ("\n" * 5000 + "late", "late"),
        (" \n", ""),
    ],
)
def test_a_title_is_one_line_of_80_characters_at_most(persistence: Service, content: str, expected: str) -> None:
    assert title(persistence, content, "second") == expected


def test_a_chat_with_no_human_message_has_no_title(persistence: Service) -> None:
    chat_id = store(persistence, role="ai")["chat_id"]
    assert find(persistence, chat_id) is not None
    assert (find(persistence, chat_id) or {})["title"] is None


def test_a_title_follows_its_message(persistence: Service) -> None:
    first = store(persistence, content="first")
    store(persistence, chat_id=first["chat_id"], role="ai")
    store(persistence, chat_id=first["chat_id"], content="second")
    path = f"/messages/{first['message_id']}"
    persistence.request("PUT", path, json={"content": "changed"})
    assert (find(persistence, first["chat_id"]) or {})["title"] == "changed"
    persistence.request("DELETE", path)
    assert (find(persistence, first["chat_id"]) or {})["title"] == "second"


def test_deleted_messages_do_not_count(persistence: Service) -> None:
    chat_id = new_id()
    messages = [store(persistence, chat_id=chat_id, sent_at=f"2026-11-2{day}T00:00:00Z") for day in range(3)]
    for message, left in zip(messages, (messages[1:], messages[2:]), strict=False):
        persistence.request("DELETE", f"/messages/{message['message_id']}")
        chat = find(persistence, chat_id) or {}
        assert (chat["message_count"], chat["first_sent_at"]) == (len(left), left[0]["sent_at"])
    persistence.request("DELETE", f"/messages/{messages[2]['message_id']}")
    assert find(persistence, chat_id) is None


def test_a_repeat_does_not_count(persistence: Service) -> None:
    message = new_message(message_id=new_id())
    for change in ({}, {}, {"content": "other"}):
        persistence.post("/messages/", json=message | change)
    assert (find(persistence, message["chat_id"]) or {})["message_count"] == 1


def test_counts_are_exact_whatever_happens_at_once(persistence: Service) -> None:
    chat_ids = [new_id() for _ in range(3)]

    def store_and_delete(number: int) -> None:
        chat_id = chat_ids[number % 3]
        kept, dropped = (store(persistence, chat_id=chat_id, content=f"{number}") for _ in range(2))
        paths = [f"/messages/{dropped['message_id']}"]
        paths += [f"/chats/{chat_id}"] if number % 10 == 5 else []
        paths += [f"/messages/{kept['message_id']}"] if number % 10 == 6 else []
        for path in paths:  # a 404: another has deleted the chat
            assert persistence.request("DELETE", path).status_code in (204, 404)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(store_and_delete, range(120)))
    for chat_id in chat_ids:
        left = persistence.get("/messages/", params={"chat_id": chat_id}).json()
        chat = find(persistence, chat_id)
        assert (chat["message_count"] if chat else 0) == len(left)
        if chat:
            assert (chat["first_sent_at"], chat["last_sent_at"]) == (left[0]["sent_at"], left[-1]["sent_at"])
            assert chat["title"] == left[0]["content"]


def test_the_last_messages_deleted_at_once_leave_no_chat(persistence: Service) -> None:
    def delete(path: str) -> int:
        return persistence.request("DELETE", path).status_code

    with ThreadPoolExecutor(4) as pool:
        for _ in range(25):
            chat_id = new_id()
            paths = [f"/messages/{store(persistence, chat_id=chat_id)['message_id']}" for _ in range(4)]
            assert set(pool.map(delete, paths)) == {204}
            assert delete(f"/chats/{chat_id}") == 404
            assert find(persistence, chat_id) is None


def test_a_deleted_chat_is_gone(persistence: Service) -> None:
    chat_id, other = new_id(), store(persistence)
    messages = [store(persistence, chat_id=chat_id) for _ in range(3)]
    response = persistence.request("DELETE", f"/chats/{chat_id.upper()}")
    assert (response.status_code, response.content) == (204, b"")
    assert "Content-Type" not in response.headers
    assert find(persistence, chat_id) is None
    assert persistence.get("/messages/", params={"chat_id": chat_id}).json() == []
    assert persistence.get(f"/messages/{messages[0]['message_id']}").status_code == 404
    assert persistence.get(f"/messages/{other['message_id']}").json() == other
    assert_error(persistence.request("DELETE", f"/chats/{chat_id}"), 404)


@pytest.mark.parametrize("value", [new_id(), "1", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "%00", "*"])
def test_a_chat_that_is_not_there_is_not_found(persistence: Service, value: str) -> None:
    assert_error(persistence.request("DELETE", f"/chats/{value}"), 404)


def test_deleting_takes_no_query(persistence: Service) -> None:
    message = store(persistence)
    assert_error(persistence.request("DELETE", f"/chats/{message['chat_id']}?role=ai"), 422, "role")
    assert persistence.get(f"/messages/{message['message_id']}").ok


@pytest.mark.parametrize("limit", [1, 2, 200])
def test_pages_lead_through_all_chats(persistence: Service, limit: int) -> None:
    chat_ids = [store(persistence)["chat_id"] for _ in range(5)]
    found: list[str] = []
    for page in pages(persistence, "/chats/", limit=limit):
        assert len(page) <= limit
        found += [chat["chat_id"] for chat in page]
        if found[4:]:
            break
    assert found[:5] == chat_ids[::-1]


def test_the_last_page_has_no_link(persistence: Service) -> None:
    last = list(pages(persistence, "/chats/", limit=200))[-1][-1]
    assert persistence.get("/chats/", params={"after": last["chat_id"]}).json() == []


def test_a_page_has_50_chats_if_no_limit_is_given(persistence: Service) -> None:
    for _ in range(51):
        store(persistence)
    response = persistence.get("/chats/")
    assert len(response.json()) == 50
    assert response.links["next"]["url"].startswith("/chats/?")


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=abc", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=1&limit=1", "limit"),
        ("after=x", "after"),
        (f"after={new_id()}", "after"),
        ("order=asc", "order"),
        ("chat_id=x", "chat_id"),
    ],
)
def test_a_wrong_parameter_is_named(persistence: Service, query: str, name: str) -> None:
    assert_error(persistence.get(f"/chats/?{query}"), 422, name)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_trailing_slash_or_none(persistence: Service, end: str) -> None:
    chat_id = store(persistence)["chat_id"]
    assert persistence.get(f"/chats{end}", allow_redirects=False).status_code == 200
    assert persistence.request("DELETE", f"/chats/{chat_id}{end}", allow_redirects=False).status_code == 204
