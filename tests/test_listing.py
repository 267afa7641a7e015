import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient

from tests.messages import assert_error, new_id, new_message, pages, store
from tests.services import KEY, Service

JSON, NDJSON = "application/json", "application/x-ndjson"
LINES = {"Accept": NDJSON}
LARGE = 12  # messages of 1 MB: more than the 8 MiB that are answered as one text

Messages = list[dict[str, Any]]


@pytest.fixture(scope="module")
def chat(persistence: Service) -> Messages:
    """A chat of 12 messages, with each role, rating and day; times run against the order in which they are stored."""
    fixed = {"chat_id": new_id(), "content": '\n\x01\x7f\\."\u2028\x85\ufeff\uffff😀\U0010ffffe\u0301{}%s$1'}
    days = [f"2026-11-{23 - number // 2:02}T16:00:00Z" for number in range(12)]
    turns = [(("human", "ai")[number % 2], (True, False, None)[number % 3], day) for number, day in enumerate(days)]
    return [store(persistence, **fixed, role=role, rating=rating, sent_at=day) for role, rating, day in turns]


def write(service: Service, chat_id: str, contents: Iterator[str]) -> None:
    """Store messages one after the other."""
    headers = {"x-api-key": KEY}
    for content in contents:
        message = new_message(chat_id=chat_id, content=content)
        assert requests.post(f"{service.url}/messages/", json=message, headers=headers, timeout=30).status_code == 201


@contextmanager
def writer(service: Service, chat_id: str) -> Iterator[None]:
    """Store messages in this chat, as fast as they go."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(write, service, chat_id, iter(lambda: "" if stop.is_set() else "x", ""))
        try:
            yield
        finally:
            stop.set()
    done.result()


def read(response: requests.Response) -> Messages:
    """Return the messages of a list, whichever form it has."""
    if response.headers["Content-Type"].startswith(JSON):
        return list(response.json())
    return [json.loads(line) for line in response.content.removesuffix(b"\n").split(b"\n")]


DAY = "2026-11-{}T16:00:00.00000{}+00:00".format
FILTERS: list[tuple[dict[str, str], Sequence[int]]] = [  # and the numbers of the messages that they leave
    ({}, range(12)),
    ({"role": "human"}, range(0, 12, 2)),
    ({"role": "ai"}, range(1, 12, 2)),
    ({"rating": "true"}, range(0, 12, 3)),
    ({"rating": "false"}, range(1, 12, 3)),
    ({"rating": "null"}, range(2, 12, 3)),
    ({"since": DAY(20, 0)}, range(8)),
    ({"until": DAY(20, 0), "order": "asc"}, range(8, 12)),
    ({"since": DAY(19, 0), "until": DAY(21, 1), "order": "desc"}, range(9, 3, -1)),
    ({"role": "human", "rating": "null", "order": "desc", "until": DAY(24, 0)}, [8, 2]),
]


@pytest.mark.parametrize(("filters", "numbers"), FILTERS)
def test_filters_in_the_order_of_storing(
    persistence: Service, chat: Messages, filters: dict[str, str], numbers: Sequence[int]
) -> None:
    chat_id, wanted = chat[0]["chat_id"], [chat[number] for number in numbers]
    for limit in (1, 2, 1000):
        found = pages(persistence, "/messages/", chat_id=chat_id, limit=limit, **filters)
        assert [message for page in found for message in page] == wanted
    whole = persistence.get("/messages/", params=filters)
    assert whole.headers["Transfer-Encoding"] == "chunked"
    assert [message for message in read(whole) if message["chat_id"] == chat_id] == wanted


@pytest.mark.parametrize(("order", "left"), [("asc", slice(6, None)), ("desc", slice(4, None, -1))])
def test_after_gives_what_follows_in_the_same_order(
    persistence: Service, chat: Messages, order: str, left: slice
) -> None:
    params = {"chat_id": chat[0]["chat_id"], "order": order, "after": chat[5]["message_id"].upper()}
    assert read(persistence.get("/messages/", params=params)) == chat[left]
    by_humans = persistence.get("/messages/", params=params | {"role": "human"}, headers=LINES)
    assert read(by_humans) == [one for one in chat[left] if one["role"] == "human"]


@pytest.mark.parametrize("limit", [11, 12, 13])
@pytest.mark.parametrize("headers", [{}, LINES])
def test_a_link_is_there_while_there_is_more(
    persistence: Service, chat: Messages, limit: int, headers: dict[str, str]
) -> None:
    response = persistence.get("/messages/", params={"chat_id": chat[0]["chat_id"], "limit": limit}, headers=headers)
    assert (read(response), "Link" in response.headers) == (chat[:limit], limit < len(chat))


ACCEPTED = dict.fromkeys(("*/*", "text/html", f"{JSON}, {NDJSON};q=0.9", ";;,="), JSON)
ACCEPTED |= dict.fromkeys((f"{NDJSON}; charset=utf-8", f"{NDJSON};q=0.5, */*;q=0.1", NDJSON.upper()), NDJSON)


@pytest.mark.parametrize("accept", ACCEPTED)
@pytest.mark.parametrize("query", ["", "&limit=1"])
def test_lines_are_for_those_who_ask(client: FlaskClient, accept: str, query: str) -> None:
    response = client.get(f"/messages/?chat_id={new_id()}{query}", headers={"Accept": accept}, buffered=True)
    assert (response.status_code, response.mimetype) == (200, ACCEPTED[accept])
    assert response.text.strip() == ("[]" if ACCEPTED[accept] == JSON else "")
    assert (response.headers["Vary"], response.headers.get("Link")) == ("Accept", None)


WRONG = {
    "/messages/?limit": ["0", "1001", "+1", "x", "%D9%A3", "", "1.0", "1e2", "%201", "9" * 5000, "%C2%B2", "1&limit=2"],
    "/messages/?rating": ["True", "1", "", "null%00", "'%20OR%201=1"],
    "/messages/?order": ["ASC", "asc;DROP%20TABLE%20messages"],
    "/messages/?after": [new_id(), f"{new_id()}&limit=1&order=desc"],
    "/messages/?since": ["2026-11-23T16:04:05+01:00"],
    "/chats/?limit": ["0", "201", "%D9%A3", "1&limit=1"],
    "/chats/?after": ["x", new_id(), "'%20OR%201=1"],
} | {f"/{path}/?{name}": ["x"] for path in ("messages", "chats") for name in ("Limit", "message_id", "x' OR 1", "")}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path in WRONG for value in WRONG[path]])
def test_a_wrong_parameter_is_named(client: FlaskClient, path: str, value: str) -> None:
    assert_error(client.get(f"{path}={value}"), 422, path.partition("?")[2])


@pytest.mark.parametrize("headers", [{}, LINES])
def test_a_page_of_more_than_8_mib_loses_nothing(persistence: Service, headers: dict[str, str]) -> None:
    chat_id, found = new_id(), list[Any]()
    stored = [store(persistence, chat_id=chat_id, content="x" * size) for size in [1] * 30 + [1_000_000] * LARGE]
    path = f"/messages/?chat_id={chat_id}&order=desc&limit=30"
    with writer(persistence, chat_id):
        while path:
            response = persistence.get(path, headers=headers)
            found += read(response)
            path = response.links.get("next", {}).get("url", "")
    persistence.request("DELETE", f"/chats/{chat_id}")  # others list all messages, too
    assert found[-len(stored) :] == stored[::-1]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_give_each_message_once_while_others_write(persistence: Service, chat: Messages, order: str) -> None:
    before = [message["message_id"] for message in persistence.get("/messages/", params={"order": order}).json()]
    found: list[str] = []
    with writer(persistence, new_id()), writer(persistence, new_id()):
        for page in pages(persistence, "/messages/", order=order, limit=97):
            found += [message["message_id"] for message in page]
            if order == "asc" and before[-1] in found:
                break  # else the writers could keep it busy
    assert len(found) == len(set(found))
    known = set(before)
    assert [message_id for message_id in found if message_id in known] == before


def test_who_follows_a_chat_misses_nothing(persistence: Service) -> None:
    """Numbers that were drawn in one order and committed in another would be missed."""
    chat_id, seen = new_id(), list[str]()
    contents = [[f"{writer} {number}" for number in range(40)] for writer in range(8)]
    params = {"chat_id": chat_id, "limit": "1000"}
    with ThreadPoolExecutor(8) as pool:
        written = [chat_id, chat_id.upper()] * 4  # one chat, however its id is written
        writing = [pool.submit(write, persistence, *one) for one in zip(written, map(iter, contents), strict=True)]
        while True:
            is_last_look = all(future.done() for future in writing)
            if new := persistence.get("/messages/", params=params).json():
                seen += [message["content"] for message in new]
                params["after"] = new[-1]["message_id"]
            elif is_last_look:
                break
        for future in writing:
            future.result()
    assert sorted(seen) == sorted(text for texts in contents for text in texts)
