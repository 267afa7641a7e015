"""POST /messages/ with NDJSON: what one service exports another imports, all of a body or nothing."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.messages import assert_error, new_id, new_message
from tests.services import Service

NDJSON = "application/x-ndjson"
MIB = 1024 * 1024
FIRST, SECOND, THIRD = (new_message(message_id=new_id(), content=f"{number}") for number in range(3))
CLASH = FIRST | {"content": "something else"}


@pytest.fixture(scope="module")
def make_empty(
    make_database: Callable[[], str], make_client: Callable[[str], FlaskClient]
) -> Callable[[], FlaskClient]:
    """Make a service over an empty database."""
    return lambda: make_client(make_database())


def lines(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def send(client: FlaskClient, body: bytes, content_type: str = NDJSON) -> Any:
    return client.post("/messages/", data=body, content_type=content_type)


def export(client: FlaskClient) -> bytes:
    return bytes(client.get("/messages/", headers={"Accept": NDJSON}, buffered=True).data)


def split(body: bytes) -> list[bytes]:
    """Return the lines in pieces of 1 MiB at most, as `split -C 1m` does."""
    pieces = [b""]
    for line in body.splitlines(keepends=True):
        if len(pieces[-1]) + len(line) > MIB:
            pieces.append(b"")
        pieces[-1] += line
    return pieces


TEXTS = (" \n", "\x01\x02\x7f", '\\.\\N"', "\u2028\x85", "\ufeff\uffff", "\U0001f600", "e\u0301{}%s$1", "x" * 900_000)
TIMES = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2026-11-23T00:00:00.1+23:59", "2026-11-23T16:04:05")


def assert_moves(source: FlaskClient, target: FlaskClient) -> None:
    """Import what one exports into the other, and expect that it exports the same."""
    for piece in split(export(source)):
        count = piece.count(b"\n")
        assert send(target, piece).json == {"stored": count, "already_there": 0}
        assert send(target, piece).json == {"stored": 0, "already_there": count}
    assert export(target) == export(source)
    assert target.get("/chats/").json == source.get("/chats/").json


def test_what_one_exports_another_imports_byte_for_byte(make_empty: Callable[[], FlaskClient]) -> None:
    source, random = make_empty(), Random(1)
    chats = [new_id() for _ in range(3)]
    for number, text in enumerate(TEXTS * 2):
        fields = {"chat_id": random.choice(chats), "role": ("ai", "human")[number % 2], "sent_at": TIMES[number % 4]}
        message = new_message(content=text, rating=(True, False, None)[number % 3], **fields)
        assert source.post("/messages/", json=message).status_code == 201
    assert_moves(source, make_empty())


@pytest.mark.slow
def test_a_large_chat_and_many_small_ones(make_empty: Callable[[], FlaskClient]) -> None:
    source, chat_id = make_empty(), new_id()
    assert export(source) == b""
    messages = [
        new_message(message_id=new_id(), chat_id=new_id() if number % 2 else chat_id) for number in range(50_000)
    ]
    for piece in split(lines(*messages)):
        assert send(source, piece).status_code == 200
    stored = [json.loads(line)["message_id"] for line in export(source).splitlines()]
    assert stored == [message["message_id"] for message in messages]
    assert_moves(source, make_empty())


TAKEN = {
    "lines": (lines(FIRST, SECOND), 0),
    "no end of the last line": (lines(FIRST, SECOND).strip(), 0),
    "CR and LF": (lines(FIRST, SECOND).replace(b"\n", b"\r\n"), 0),
    "one twice": (lines(FIRST, SECOND, FIRST | {"message_id": FIRST["message_id"].upper(), "rating": True}), 1),
    "1 MiB": (lines(FIRST, SECOND).strip().ljust(MIB), 0),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_body_that_is_taken(make_empty: Callable[[], FlaskClient], name: str) -> None:
    target, (body, already_there) = make_empty(), TAKEN[name]
    response = send(target, body, f"{NDJSON}; charset=utf-8")
    assert (response.status_code, response.json) == (200, {"stored": 2, "already_there": already_there})
    found = [json.loads(line) for line in export(target).splitlines()]
    assert [one | given == one for one, given in zip(found, (FIRST, SECOND), strict=True)] == [True, True]
    assert [one["rating"] for one in found] == [None, None]


NO_OBJECT = [b"", b" ", b"{", b"[]", b"null", b"{}", b"NaN", b'{"content": "\xff"}', lines(SECOND).strip() * 2]
REFUSED = [
    *((lines(SECOND) + line + b"\n" + lines(THIRD), 422, "2") for line in NO_OBJECT),
    (lines(SECOND, THIRD | {"role": "user"}, THIRD), 422, "2"),
    *((lines({name: THIRD[name] for name in THIRD if name != missing}), 422, "1") for missing in THIRD),
    *((body, 422, "1") for body in (b"\xef\xbb\xbf" + lines(SECOND), b"")),
    (lines(SECOND, {}, THIRD, {"x": 1}), 422, "24"),
    (lines(SECOND, CLASH), 409, "2"),
    (lines(SECOND, FIRST, SECOND | {"role": "ai"}, SECOND, CLASH), 409, "35"),
    (lines(SECOND).strip().ljust(MIB + 1), 413, ""),
]


@pytest.fixture(scope="module")
def half_full(make_empty: Callable[[], FlaskClient]) -> FlaskClient:
    """A service that holds FIRST."""
    client = make_empty()
    assert send(client, lines(FIRST)).status_code == 200
    return client


@pytest.mark.parametrize(("body", "code", "numbers"), REFUSED)
def test_of_a_refused_body_nothing_is_stored(half_full: FlaskClient, body: bytes, code: int, numbers: str) -> None:
    response = send(half_full, body)
    assert_error(response, code, *numbers)
    if code == 422:
        assert response.json["message"] == f"Invalid lines: {', '.join(numbers)}."
    assert [json.loads(line)["content"] for line in export(half_full).splitlines()] == [FIRST["content"]]


def test_a_line_is_checked_like_a_message(half_full: FlaskClient) -> None:
    wrong = THIRD | {"role": "user", "content": "", "other": 1}
    assert send(half_full, lines(wrong)).json["errors"]["1"] == half_full.post("/messages/", json=wrong).json["errors"]  # type: ignore[index]


def test_an_import_takes_no_query(half_full: FlaskClient) -> None:
    assert_error(half_full.post("/messages/?x=1", data=lines(SECOND), content_type=NDJSON), 422, "x")


def test_another_charset_is_refused(half_full: FlaskClient) -> None:
    assert_error(send(half_full, lines(SECOND), f"{NDJSON}; charset=latin-1"), 415)


def test_imports_over_the_same_chats_at_once_never_wait_in_a_circle(persistence: Service) -> None:
    messages = [new_message(message_id=new_id(), chat_id=chat_id) for chat_id in [new_id() for _ in range(30)] * 40]

    def post(seed: int) -> Any:
        body = lines(*Random(seed).sample(messages, len(messages)))
        return persistence.post("/messages/", data=body, headers={"Content-Type": NDJSON})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert sum(answer.json()["stored"] for answer in answers) == len(messages)
