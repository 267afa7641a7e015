import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.messages import assert_error, new_id, new_message, pages, store
from tests.services import KEY, Service

NDJSON = {"Accept": "application/x-ndjson"}
LARGE = 12  # messages of 1 MB: more than the 8 MiB that are answered as one text

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def chat(persistence: Service) -> list[dict[str, Any]]:
    """A chat of 12 messages, with each role, rating and day; times run against the order in which they are stored."""
    chat_id = new_id()
    return [
        store(
            persistence,
            chat_id=chat_id,
            content=f"{number}",
            role=("human", "ai")[number % 2],
            rating=(True, False, None)[number % 3],
            sent_at=f"2026-11-{23 - number // 2:02}T16:00:00Z",
        )
        for number in range(12)
    ]


@pytest.fixture(scope="module")
def large_chat(persistence: Service) -> Iterator[list[dict[str, Any]]]:
    chat_id = new_id()
    yield [store(persistence, chat_id=chat_id, content=f"{number:010}" * 100_000) for number in range(LARGE)]
    persistence.request("DELETE", f"/chats/{chat_id}")  # others list all messages, too


@contextmanager
def writers(service: Service, chat_ids: list[str], count: int = 1) -> Iterator[None]:
    """Store messages in these chats, one after the other, as fast as they go, with `count` threads."""
    stop = threading.Event()

    def write() -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["x-api-key"] = KEY
            while not stop.is_set():
                for chat_id in chat_ids:
                    session.post(f"{service.url}/messages/", json=new_message(chat_id=chat_id), timeout=30)

    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(write) for _ in range(count)]
        try:
            yield
        finally:
            stop.set()
    for future in done:
        future.result()


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


def expected(chat: list[dict[str, Any]], filters: dict[str, str]) -> list[dict[str, Any]]:
    """What the filters leave, worked out again in Python."""
    tests = {
        "role": lambda message, value: message["role"] == value,
        "rating": lambda message, value: json.dumps(message["rating"]) == value,
        "since": lambda message, value: message["sent_at"] >= value,
        "until": lambda message, value: message["sent_at"] < value,
    }
    found = [
        message for message in chat if all(tests[name](message, filters[name]) for name in tests if name in filters)
    ]
    return found[::-1] if filters.get("order") == "desc" else found


FILTERS = [
    {},
    {"role": "ai"},
    {"role": "human"},
    {"rating": "true"},
    {"rating": "false"},
    {"rating": "null"},
    {"since": "2026-11-20T16:00:00.000000+00:00"},
    {"until": "2026-11-20T16:00:00.000000+00:00"},
    {"since": "2026-11-19T16:00:00.000000+00:00", "until": "2026-11-21T16:00:00.000001+00:00"},
    {"order": "asc"},
    {"order": "desc"},
    {"role": "ai", "rating": "null", "order": "desc"},
    {"role": "human", "rating": "true", "since": "2026-11-19T00:00:00+00:00", "until": "2026-11-24T00:00:00+00:00"},
]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("limit", [None, 1000, 1, 2])
def test_filters_in_the_order_of_storing(
    persistence: Service, chat: list[dict[str, Any]], filters: dict[str, str], limit: int | None
) -> None:
    params = filters | {"chat_id": chat[0]["chat_id"]} | ({"limit": f"{limit}"} if limit else {})
    found = [message for page in pages(persistence, "/messages/", **params) for message in page]
    assert found == expected(chat, filters)
    assert found


@pytest.mark.parametrize("name", ["role", "rating"])
def test_a_filter_alone_holds_for_all_chats(persistence: Service, chat: list[dict[str, Any]], name: str) -> None:
    message = chat[1]
    found = persistence.get("/messages/", params={name: json.dumps(message[name]).strip('"')}).json()
    assert message in found
    assert {other[name] for other in found} == {message[name]}


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_after_gives_what_follows_in_the_same_order(
    persistence: Service, chat: list[dict[str, Any]], order: str
) -> None:
    params = {"chat_id": chat[0]["chat_id"], "order": order, "after": chat[5]["message_id"].upper()}
    found = persistence.get("/messages/", params=params).json()
    assert found == (chat[6:] if order == "asc" else chat[4::-1])


def test_after_may_be_a_message_that_the_filters_leave_out(persistence: Service, chat: list[dict[str, Any]]) -> None:
    params = {"chat_id": chat[0]["chat_id"], "role": "ai", "after": chat[4]["message_id"]}
    assert contents(persistence.get("/messages/", params=params).json()) == ["5", "7", "9", "11"]


@pytest.mark.parametrize("limit", [1, 5, 11, 12, 13])
def test_a_link_is_there_while_there_is_more(persistence: Service, chat: list[dict[str, Any]], limit: int) -> None:
    response = persistence.get("/messages/", params={"chat_id": chat[0]["chat_id"], "limit": limit})
    assert response.json() == chat[:limit]
    assert ("Link" in response.headers) == (limit < len(chat))


def test_a_link_keeps_the_filters(persistence: Service, chat: list[dict[str, Any]]) -> None:
    params = {
        "chat_id": chat[0]["chat_id"],
        "role": "human",
        "since": "2026-11-01T00:00:00+01:00",
        "until": "2026-11-24T00:00:00+00:00",
        "order": "desc",
        "limit": "2",
    }
    link = persistence.get("/messages/", params=params).headers["Link"]
    path, query = link.removesuffix('>; rel="next"').removeprefix("<").split("?")
    assert path == "/messages/"
    assert dict(parse_qsl(query, strict_parsing=True)) == params | {"after": chat[8]["message_id"]}


@pytest.mark.parametrize("params", [{}, {"limit": "5"}])
def test_one_message_a_line(persistence: Service, chat: list[dict[str, Any]], params: dict[str, str]) -> None:
    response = persistence.get("/messages/", params=params | {"chat_id": chat[0]["chat_id"]}, headers=NDJSON)
    assert response.headers["Content-Type"].split(";")[0] == "application/x-ndjson"
    assert response.text.endswith("}\n")
    assert [json.loads(line) for line in response.text.splitlines()] == chat[: 5 if params else None]
    assert ("Link" in response.headers) == bool(params)


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("application/json, application/x-ndjson;q=0.9", "application/json"),
        ("application/x-ndjson;q=0.5, */*;q=0.1", "application/x-ndjson"),
        (";;,=", "application/json"),
    ],
)
def test_lines_are_for_those_who_ask(persistence: Service, accept: str, media: str) -> None:
    response = persistence.get("/messages/?limit=1", headers={"Accept": accept})
    assert response.headers["Content-Type"].split(";")[0] == media
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize("limit", [None, 5])
def test_nothing_found(persistence: Service, limit: int | None) -> None:
    params = {"chat_id": new_id(), "limit": limit}
    answers = [persistence.get("/messages/", params=params, headers=headers) for headers in ({}, NDJSON)]
    assert answers[0].json() == []
    assert answers[1].text == ""
    assert [answer.status_code for answer in answers] == [200, 200]
    assert not any("Link" in answer.headers for answer in answers)


def test_a_whole_list_is_streamed(persistence: Service, chat: list[dict[str, Any]]) -> None:
    response = persistence.get("/messages/")
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert [message for message in response.json() if message["chat_id"] == chat[0]["chat_id"]] == chat


@pytest.mark.parametrize(
    ("query", "name"),
    [
        *(
            (f"limit={limit}", "limit")
            for limit in ("0", "1001", "-1", "+1", "abc", "%D9%A3", "", "1.0", "1e2", "%201")
        ),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=00000000109999", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit", "limit"),
        ("limit=1&limit=2", "limit"),
        ("chat_id=x", "chat_id"),
        ("chat_id=", "chat_id"),
        ("chat_id=6ba7b810-9dad-11d1-80b4-00c04fd430c8", "chat_id"),
        ("role=user", "role"),
        ("role=ai&role=ai", "role"),
        ("role=ai%00", "role"),
        ("rating=True", "rating"),
        ("rating=1", "rating"),
        ("rating=", "rating"),
        ("order=ASC", "order"),
        ("order=asc;DROP%20TABLE%20messages", "order"),
        ("since=2026-11-23T16:04:05+01:00", "since"),
        ("since=2026-11-23", "since"),
        ("until=", "until"),
        ("after=x", "after"),
        (f"after={new_id()}", "after"),
        (f"after={new_id()}&limit=1&order=desc", "after"),
        ("offset=1", "offset"),
        ("Limit=1", "Limit"),
        ("message_id=x", "message_id"),
        ("=", ""),
    ],
)
def test_a_wrong_parameter_is_named(persistence: Service, query: str, name: str) -> None:
    assert_error(persistence.get(f"/messages/?{query}"), 422, name)


@pytest.mark.parametrize("headers", [{}, NDJSON])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_of_more_than_8_mib(
    persistence: Service, large_chat: list[dict[str, Any]], order: str, headers: dict[str, str]
) -> None:
    params = {"chat_id": large_chat[0]["chat_id"], "order": order, "limit": LARGE - 1}
    whole = large_chat if order == "asc" else large_chat[::-1]
    first = persistence.get("/messages/", params=params, headers=headers)
    rest = persistence.get(first.links["next"]["url"], headers=headers)
    read = [[json.loads(line) for line in page.text.splitlines()] if headers else page.json() for page in (first, rest)]
    assert read == [whole[: LARGE - 1], whole[LARGE - 1 :]]
    assert "Link" not in rest.headers


@pytest.mark.parametrize("limit", [LARGE, 1000])
def test_a_large_page_that_is_the_last_has_no_link(
    persistence: Service, large_chat: list[dict[str, Any]], limit: int
) -> None:
    response = persistence.get("/messages/", params={"chat_id": large_chat[0]["chat_id"], "limit": limit})
    assert response.json() == large_chat
    assert "Link" not in response.headers


def test_large_pages_lose_nothing_while_others_write(persistence: Service) -> None:
    chat_id = new_id()
    sizes = [1] * 30 + [1_000_000] * LARGE
    stored = [store(persistence, chat_id=chat_id, content="x" * size) for size in sizes]
    with writers(persistence, [chat_id], 2):
        found = [
            message
            for page in pages(persistence, "/messages/", chat_id=chat_id, order="desc", limit=30)
            for message in page
        ]
    persistence.request("DELETE", f"/chats/{chat_id}")
    assert found[-len(stored) :] == stored[::-1]


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_give_each_message_once_while_others_write(
    persistence: Service, chat: list[dict[str, Any]], order: str
) -> None:
    before = [message["message_id"] for message in persistence.get("/messages/", params={"order": order}).json()]
    with writers(persistence, [new_id() for _ in range(3)], 2):
        found: list[str] = []
        for page in pages(persistence, "/messages/", order=order, limit=97):
            found += [message["message_id"] for message in page]
            if order == "asc" and before[-1] in found:
                break  # else the writers could keep it busy
    assert len(found) == len(set(found))
    known = set(before)
    assert [message_id for message_id in found if message_id in known] == before


def test_who_follows_a_chat_misses_nothing(persistence: Service) -> None:
    """Numbers that were drawn in one order and committed in another would be missed."""
    chat_id = new_id()
    written = threading.Event()

    def write(writer: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.headers["x-api-key"] = KEY
            for number in range(60):
                message = new_message(chat_id=chat_id, content=f"{writer} {number}")
                assert session.post(f"{persistence.url}/messages/", json=message, timeout=30).status_code == 201

    def follow() -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        params: dict[str, Any] = {"chat_id": chat_id, "limit": 1000}
        while True:
            last_look = written.is_set()
            if new := persistence.get("/messages/", params=params).json():
                seen += new
                params["after"] = seen[-1]["message_id"]
            elif last_look:
                return seen

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(follow)
        writing = [pool.submit(write, writer) for writer in range(8)]
        try:
            for future in writing:
                future.result()
        finally:
            written.set()
        seen = contents(reader.result())
    assert sorted(seen) == sorted(f"{writer} {number}" for writer in range(8) for number in range(60))


@few
@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), min_size=1, max_size=5))
def test_any_text_comes_back_as_it_was(persistence: Service, texts: list[str]) -> None:
    chat_id = new_id()
    stored = [store(persistence, chat_id=chat_id, content=text) for text in texts]
    assert contents(stored) == texts
    assert persistence.get("/messages/", params={"chat_id": chat_id}).json() == stored
    assert persistence.get("/messages/", params={"chat_id": chat_id, "limit": 9}).json() == stored
    lines = persistence.get("/messages/", params={"chat_id": chat_id}, headers=NDJSON).content.split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == stored


@few
@given(
    limit=st.integers(1, 9),
    order=st.sampled_from(["asc", "desc"]),
    ratings=st.lists(st.sampled_from([True, False, None]), max_size=12),
    new=st.integers(0, 3),
)
def test_pages_lose_nothing_whatever_is_stored_between_them(
    persistence: Service, limit: int, order: str, ratings: list[bool | None], new: int
) -> None:
    chat_id = str(uuid.uuid4())
    stored = [store(persistence, chat_id=chat_id, rating=rating) for rating in ratings]
    wanted = [message for message in stored if message["rating"] is None]
    found: list[dict[str, Any]] = []
    params = {"chat_id": chat_id, "limit": limit, "order": order, "rating": "null", "until": "9999-12-31T00:00:00Z"}
    for number, page in enumerate(pages(persistence, "/messages/", **params)):
        found += page
        for _ in range(new if number < 3 else 0):
            store(persistence, chat_id=chat_id)
    assert len(page) <= limit
    assert [message for message in found if message in wanted] == (wanted if order == "asc" else wanted[::-1])
    assert len({message["message_id"] for message in found}) == len(found)
