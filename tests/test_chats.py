from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.messages import assert_error, new_id, pages, store
from tests.services import Service

FIELDS = ["chat_id", "message_count", "first_sent_at", "last_sent_at", "title"]


def find(service: Service, chat_id: str) -> dict[str, Any]:
    """Return a chat from the list; empty if it is not there."""
    found = [chat for page in pages(service, "/chats/", limit=200) for chat in page if chat["chat_id"] == chat_id]
    assert len(found) < 2
    return dict(*found)


def delete(service: Service, path: str) -> int:
    return service.request("DELETE", path).status_code


def test_tells_of_a_chat(persistence: Service) -> None:
    chat_id = new_id()
    store(persistence, chat_id=chat_id, role="ai", content="Welcome!", sent_at="2026-11-23T16:00:00.5+01:00")
    store(persistence, chat_id=chat_id, content="Hello?", sent_at="2026-11-24T16:00:00Z")
    store(persistence, chat_id=chat_id, content="Anyone?", sent_at="2026-11-22T16:00:00Z")
    chat = persistence.get("/chats/").json()[0]
    times = ["2026-11-23T15:00:00.500000+00:00", "2026-11-22T16:00:00.000000+00:00"]
    assert list(chat.items()) == list(zip(FIELDS, [chat_id, 3, *times, "Hello?"], strict=True))


def test_the_chat_with_the_message_stored_last_comes_first(persistence: Service) -> None:
    chat_ids = [new_id() for _ in range(3)]
    messages = [store(persistence, chat_id=chat_id) for chat_id in (*chat_ids, chat_ids[0])]
    assert [chat["chat_id"] for chat in persistence.get("/chats/?limit=3").json()] == [chat_ids[n] for n in (0, 2, 1)]
    delete(persistence, f"/messages/{messages[3]['message_id']}")
    assert [chat["chat_id"] for chat in persistence.get("/chats/?limit=3").json()] == chat_ids[::-1]


TITLES = {
    "  Hello,\t\n\r\n  world \n": "Hello, world",
    "a" + "\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029" + "b": "a b",
    "😀" * 100: "😀" * 80,
    "x" * 79 + " y": "x" * 79,
    '"\\/\x01%s {} <b>': '"\\/\x01%s {} <b>',
    "\n" * 5000 + "late": "late",
    " \n": "",
}


@pytest.mark.parametrize("content", TITLES, ids=repr)
def test_a_title_is_one_line_of_80_characters_at_most(persistence: Service, content: str) -> None:
    chat_id = store(persistence, content=content)["chat_id"]
    store(persistence, chat_id=chat_id, content="second")
    assert persistence.get("/chats/?limit=1").json()[0]["title"] == TITLES[content]


def test_a_title_follows_its_message(persistence: Service) -> None:
    chat_id = store(persistence, role="ai")["chat_id"]
    assert find(persistence, chat_id)["title"] is None
    path = f"/messages/{store(persistence, chat_id=chat_id, content='first')['message_id']}"
    store(persistence, chat_id=chat_id, content="second")
    persistence.request("PUT", path, json={"content": "changed"})
    assert find(persistence, chat_id)["title"] == "changed"
    delete(persistence, path)
    assert find(persistence, chat_id)["title"] == "second"


def test_deleted_messages_and_repeats_do_not_count(persistence: Service) -> None:
    chat_id = new_id()
    messages = [store(persistence, chat_id=chat_id, sent_at=f"2026-11-2{day}T00:00:00Z") for day in range(3)]
    for change in ({}, {"content": "other"}):
        persistence.post("/messages/", json=messages[0] | change)
    while messages:
        chat = find(persistence, chat_id)
        assert (chat["message_count"], chat["first_sent_at"]) == (len(messages), messages[0]["sent_at"])
        delete(persistence, f"/messages/{messages.pop(0)['message_id']}")
    assert not find(persistence, chat_id)


def test_counts_are_exact_whatever_happens_at_once(persistence: Service) -> None:
    chat_ids = [new_id() for _ in range(3)]

    def store_and_delete(number: int) -> None:
        chat_id = chat_ids[number % 3]
        kept, dropped = (store(persistence, chat_id=chat_id, content=f"{number}") for _ in range(2))
        also = {5: [f"/chats/{chat_id}"], 6: [f"/messages/{kept['message_id']}"]}.get(number % 10, [])
        for path in [f"/messages/{dropped['message_id']}", *also]:  # a 404: another has deleted the chat
            assert delete(persistence, path) in (204, 404)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(store_and_delete, range(90)))
    for chat_id in chat_ids:
        left = persistence.get("/messages/", params={"chat_id": chat_id}).json()
        of_left = [chat_id, len(left), left[0]["sent_at"], left[-1]["sent_at"], left[0]["content"]] if left else []
        assert list(find(persistence, chat_id).values()) == of_left


def test_a_deleted_chat_is_gone(persistence: Service) -> None:
    chat_id, other = new_id(), store(persistence)
    messages = [store(persistence, chat_id=chat_id) for _ in range(3)]
    response = persistence.request("DELETE", f"/chats/{chat_id.upper()}")
    assert (response.status_code, response.content, response.headers.get("Content-Type")) == (204, b"", None)
    assert not find(persistence, chat_id)
    assert persistence.get("/messages/", params={"chat_id": chat_id}).json() == []
    assert persistence.get(f"/messages/{messages[0]['message_id']}").status_code == 404
    assert persistence.get(f"/messages/{other['message_id']}").json() == other
    assert_error(persistence.request("DELETE", f"/chats/{chat_id}"), 404)


@pytest.mark.parametrize(("limit", "size"), [({"limit": 1}, 1), ({"limit": 2}, 2), ({}, 50), ({"limit": 200}, 200)])
def test_pages_lead_through_all_chats(persistence: Service, limit: dict[str, int], size: int) -> None:
    chat_ids = [store(persistence)["chat_id"] for _ in range(max(size % 200, 5) + 1)]
    found: list[str] = []
    for page in pages(persistence, "/chats/", **limit):
        assert len(page) <= size
        found += [chat["chat_id"] for chat in page]
        if size < 200 and len(found) >= len(chat_ids):
            break
    assert found[: len(chat_ids)] == chat_ids[::-1]
    assert len(found) == len(set(found))
