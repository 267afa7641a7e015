"""What both check of a request, in order: key, path, method, size, content type, JSON, fields; over no server."""

import gc
import hmac
import json
import re
import uuid
from collections.abc import Callable
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from marshmallow import ValidationError

import chat.app
import chat.settings
from persistence.web import auth
from tests.messages import assert_error, new_id, new_message
from tests.services import KEY, OTHER_KEY, ROOT, Service

JSON, TEXT = "application/json", "text/plain"
MIB = 1024 * 1024
SECRETS = re.compile(rf'Traceback|File "|\bSELECT\b|\bINSERT\b|psycopg|site-packages|\.py\b|{re.escape(str(ROOT))}')
UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
OPEN = ("/health", "/ready", "/docs", "/openapi.json")
ONE, CHAT, TALK = f"/messages/{new_id()}", f"/chats/{new_id()}", f"/chat/{new_id()}"
ALLOWED = dict.fromkeys((*OPEN, "/chats/"), "GET, HEAD, OPTIONS")
ALLOWED |= {"/messages/": "GET, HEAD, OPTIONS, POST", ONE: "DELETE, GET, HEAD, OPTIONS, PUT"}
ALLOWED |= {CHAT: "DELETE, OPTIONS", "/turns/": "OPTIONS, PUT", "/chat": "OPTIONS, POST", TALK: "GET, HEAD, OPTIONS"}

BAD_IDS = """
    0 6ba7b810-9dad-11d1-80b4-00c04fd430c8 00000000-0000-0000-0000-000000000000 ffffffff-ffff-ffff-ffff-ffffffffffff
    0b0d2f6e-3c51-4f0a-ca64-5f1a3c0f7e21 0b0d2f6e3c514f0a9a645f1a3c0f7e21 {0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21}
    urn:uuid:0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21 0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e2 'OR'1'='1 %(limit)s
    0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e2g 0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e2² 0b0d-2f6e3c51-4f0a-9a64-5f1a3c0f7e21
"""
BAD_TIMES = """
    now infinity 1795449845 2026-11-23 2026-11-23T16:04Z 2026-11-23T16Z 20261123T160405Z 2026-W48-1T16:04:05Z
    2026-327T16:04:05Z 2026-11-23T24:00:00Z 2026-11-23T23:60:00Z 2026-11-23T23:59:61Z 2026-11-23T16:04:05.1234567Z
    2026-11-23T16:04:05.Z 2026-11-23T16:04:05,5Z 2026-11-23T16:04:05+0100 2026-11-23T16:04:05+01 2026-11-23T16:04:0²Z
    2026-11-23T16:04:05+24:00 2026-11-23T16:04:05+01:60 2026-11-23T16:04:05+01:00:00 2026-02-29T00:00:00Z
    2026-13-01T00:00:00Z 2026-00-01T00:00:00Z 0000-01-01T00:00:00Z 10000-01-01T00:00:00Z -2026-01-01T00:00:00Z
    0001-01-01T00:00:00+01:00 9999-12-31T23:59:59-01:00
"""
NO_IDS = [
    *BAD_IDS.split(),
    *(f"{space}0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21{end}" for space, end in ((" ", ""), ("", "\n"))),
    "\0",
]
NO_TIMES = ["2026-11-23 16:04:05Z", *(f"2026-11-23T16:04:05{end}" for end in (" +01:00", "Z ", "Z\n", " UTC", "Z\0"))]
REFUSED: dict[str, list[Any]] = {
    "content": ["", None, 1, True, 1.5, ["a"], {"a": "b"}, "a\0b", "\ud800", "a\udfffb", "\udc00\ud800"],
    "rating": ["yes", "true", "null", "", 1, 0, 1.0, -1, [], {}, [True]],
    "role": ["AI", "Human", "human ", "user", "", None, 1, True, ["ai"], {}, "ai\0", "ai'; DROP TABLE messages; --"],
    "message_id": [*NO_IDS, "", None, 0, []],
    "chat_id": [*NO_IDS, "", None, 0, []],
    "sent_at": [*NO_TIMES, *BAD_TIMES.split(), "", None, 0, 1.5, True, [], {}],
}
UNKNOWN = ["id", "seq", "Content", "content ", "_schema", "", "rating\0", "\ud800", "a\nb", "\u2028"]
REFUSED |= {name: ["x"] for name in UNKNOWN} | {"stream": ["true", 1, None]}
FILTERS = {"role": ["role"], "message_id": ["after"], "chat_id": ["chat_id"], "sent_at": ["since", "until"]}
TAKEN = [
    ("content", " \n\x01\x02\x7f\\.\"\u2028\x85\ufeff\uffff😀\U0010ffffe\u0301{}%s$1'; DROP TABLE messages; --", None),
    ("chat_id", "0B0D2F6E-3C51-4F0A-9A64-5F1A3C0F7E21", "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21"),
    ("sent_at", "2026-11-23t16:04:05.1z", "2026-11-23T16:04:05.100000+00:00"),
    ("sent_at", "2026-11-23T16:04:05.999999", "2026-11-23T16:04:05.999999+00:00"),
    ("sent_at", "2026-11-23T00:00:00+23:59", "2026-11-22T00:01:00.000000+00:00"),
    ("sent_at", "2026-11-23T23:59:59-05:30", "2026-11-24T05:29:59.000000+00:00"),
    ("sent_at", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000+00:00"),
    ("sent_at", "9999-12-31T23:59:59.999999-00:00", "9999-12-31T23:59:59.999999+00:00"),
]
VALUES = (b"NaN", b"-Infinity", b"01", b'"\n"', b'"\0"', b'"\\x"', b"9" * 900_000, b'"\xff"', b'"\xed\xa0\x80"')
NO_JSON = [b"", b" ", b"{", b"{}x", b"{'a': 1}", b'{"a": 1,}', b'{"a"}', b"undefined", '{"a": "ü"}'.encode("utf-16")]
NO_JSON += [b'{"role": "ai", "r\\u006fle": "ai"}', b'{"a": {"b": 1, "b": 1}}', *(b'{"a": %s}' % one for one in VALUES)]
NO_JSON += [b"[" * 100_000, b'{"a":' * 99_999 + b"1" + b"}" * 99_999]
OTHER_TYPES = [None, "", TEXT, "text/json", "json", "application/x-www-form-urlencoded", "application/problem+json"]
OTHER_TYPES += ["multipart/form-data; boundary=x", f"{JSON}, {TEXT}", f"{JSON}; charset=latin-1"]


Send = Callable[..., Any]


def body(data: bytes, content_type: str | None = JSON) -> dict[str, Any]:
    return {"data": data, "content_type": content_type}


LARGE = body(b"x" * (MIB + 1), TEXT)
SOME = {"json": new_message(rating=True)}
CASES: list[tuple[int, str, str, dict[str, Any]]] = [
    *((200, "GET", path + end, {}) for path in (*OPEN, "/messages", "/chats") for end in ("", "/")),
    *((200, "GET", path, {}) for path in ("/docs/start.js", "/messages/?limit=1", "/messages?limit=1")),
    *((404, "GET", path, {}) for path in ("/", "/nothing", "/Health", "/docs.json", f"{ONE}/x", "/😀", CHAT * 2)),
    *((404, "GET", f"/docs/{path}", {}) for path in ("../openapi.json", "..%2f__init__.py", "/etc/passwd", "%00", ".")),
    *((404, method, "/nothing", LARGE) for method in ("POST", "DELETE", "OPTIONS")),
    *((404, method, f"/messages/{quote(one)}", {}) for one in [new_id(), *NO_IDS] for method in ("GET", "DELETE")),
    *((404, "DELETE", f"/chats/{quote(one)}", {}) for one in [new_id(), *NO_IDS]),
    *((404, "PUT", f"/messages/{quote(one)}", {"json": {"rating": True}}) for one in [new_id(), *NO_IDS]),
    *((405, "PATCH", path, LARGE) for path in ALLOWED),
    *((422, method, f"{ONE}?limit=1", {}) for method in ("GET", "DELETE")),
    *((404, "GET", f"/chat/{quote(one)}", {}) for one in NO_IDS),
    *((422, "GET", f"{TALK}?{query}", {}) for query in ("limit=0", "limit=1001", "limit=", "limit=1&limit=2")),
    *((422, "GET", f"{TALK}?{query}", {}) for query in ("order=up", "after=x", "role=ai")),
    *((422, "DELETE", path, {}) for path in (f"{CHAT}?role=ai", f"/turns/{new_id()}")),
    (415, "POST", "/messages/", SOME | {"headers": {"Content-Encoding": "gzip"}}),
]
for call in (("POST", "/messages/"), ("PUT", ONE), ("PUT", "/turns/"), ("POST", "/messages/?x=1"), ("POST", "/chat")):
    CASES += [(413, *call, LARGE), *((415, *call, body(b"{", one)) for one in OTHER_TYPES)]
    CASES += [(400, *call, body(one)) for one in NO_JSON] + [(422, *call, SOME | {"json": {}})]
    CASES += [(422, *call, body(one)) for one in (b"null", b"[]", b'"text"', b"1", b"true", b"1e999", b"[{}]")]


@pytest.fixture(scope="module")
def send(client: FlaskClient) -> Send:
    """Send a request to one of the services. A key is given as WSGI has it: its bytes as Latin-1."""
    talker = chat.app.create_app(chat.settings.Settings()).test_client()

    def send_to(method: str, path: str, *, key: str = KEY, **options: Any) -> Any:
        environ = {"HTTP_X_API_KEY": key.encode().decode("latin-1")} | options.pop("environ", {})
        service = talker if re.match("/chat(/|$)", path) else client
        return service.open(path, method=method, environ_overrides=environ, buffered=True, **options)

    return send_to


@pytest.mark.parametrize(("code", "method", "path", "options"), CASES)
def test_every_answer(send: Send, code: int, method: str, path: str, options: dict[str, Any]) -> None:
    """It has an id, is kept by no cache, opens the service to no other site, and tells nothing of the inside."""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"} | options.get("headers", {})
    response = send(method, path, **options | {"headers": headers})
    assert response.status_code == code
    if code >= 400:
        assert_error(response, code, *response.json.get("errors", {}))
    assert UUID.fullmatch(response.headers["X-Request-ID"])
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store" or path.startswith("/docs/")
    assert not re.search("(?i)access-control|set-cookie|retry-after", str(response.headers))
    assert path.startswith("/docs/") or not SECRETS.search(response.text)
    keyless = send(method, path, **options, key="")
    if path.rstrip("/") in OPEN or path.startswith("/docs/"):
        assert keyless.status_code == code
    else:
        assert_error(keyless, 401)
        assert keyless.headers["WWW-Authenticate"] == "ApiKey"
    assert keyless.headers["X-Request-ID"] != response.headers["X-Request-ID"]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in REFUSED for value in REFUSED[field]])
def test_a_value_that_is_refused(send: Send, field: str, value: Any) -> None:
    stored = send("POST", "/messages/", json=new_message()).json
    path = f"/messages/{stored['message_id']}"
    assert_error(send("POST", "/messages/", json=new_message() | {field: value}), 422, field)
    assert_error(send("PUT", path, json={"rating": True, "content": "x"} | {field: value}), 422, field)
    assert_error(send("POST", "/chat", json={"content": "x"} | {field: value}), 422, field)
    for name in FILTERS.get(field, []) if isinstance(value, str) else []:
        assert_error(send("GET", "/messages/", query_string={name: value}), 422, name)
    assert send("GET", path).json == stored


@pytest.mark.parametrize(("field", "given", "answered"), TAKEN)
def test_a_value_that_is_taken(send: Send, field: str, given: str, answered: str | None) -> None:
    response = send("POST", "/messages/", json=new_message() | {field: given})
    assert (response.status_code, response.json[field]) == (201, answered or given)
    assert send("GET", response.headers["Location"]).json == response.json
    for name in [name for name in FILTERS.get(field, []) if answered]:
        query = {"chat_id": response.json["chat_id"]} | {name: given}
        found = send("GET", "/messages/", query_string=query).json
        assert found == ([] if name == "until" else [response.json])


def test_all_wrong_fields_are_named_at_once_but_little_of_what_was_sent(send: Send) -> None:
    message = dict.fromkeys(("message_id", "chat_id", "content", "rating", "sent_at", "role", "other"), 1)
    assert_error(send("POST", "/messages/", json=message), 422, *message)
    assert_error(send("POST", "/messages/", json={}), 422, "chat_id", "content", "role")
    many = send("POST", "/messages/", json={"n" * 9000 + f"{number}": 1 for number in range(100)})
    assert {"chat_id", "content", "role"} <= set(many.json["errors"])
    assert len(many.data) < 10_000


@pytest.mark.parametrize("content_type", ["Application/JSON", f"{JSON}; charset=utf-8", f'{JSON};charset="UTF-8"'])
def test_a_body_of_one_mebibyte(send: Send, content_type: str) -> None:
    data = json.dumps(new_message(content="ü😀"), ensure_ascii=False).encode().ljust(MIB)
    response = send("POST", "/messages/", **body(data, content_type))
    assert (response.status_code, response.json["content"]) == (201, "ü😀")


@pytest.mark.parametrize("path", ALLOWED)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_wrong_method_is_told_the_right_ones(send: Send, path: str, end: str) -> None:
    allowed = set(ALLOWED[path].split(", "))
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"} - allowed:
        response = send(method, path.rstrip("/") + end)
        assert_error(response, 405)
        assert response.headers["Allow"] == ALLOWED[path]
    assert set(send("OPTIONS", path.rstrip("/") + end).headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "key", ["x", KEY.upper(), KEY[:-1], f"{KEY}x", f"{KEY},{KEY}", f"ApiKey {KEY}", "schlüssel", "鍵", "x" * 8000]
)
def test_a_key_counts_whole_and_in_no_other_place(send: Send, key: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "api-key": KEY, "Cookie": f"x-api-key={KEY}"}
    assert_error(send("GET", f"/messages/?x-api-key={KEY}", headers=headers, key=key), 401)


@pytest.mark.parametrize("key", [b"first-key", b"third", b"first-kex", b"\xff" * 9, b"first-key-and-more"])
def test_each_key_is_compared_in_constant_time_whatever_is_given(key: bytes) -> None:
    """How long it takes must not tell how much of a key was right, nor which one: so it is looked at what is called."""
    keys = (b"first-key", b"second-key", b"third")
    with mock.patch("hmac.compare_digest", wraps=hmac.compare_digest) as compare:  # reads all of both, always
        assert auth.is_one_of(key, keys) == (key in keys)
    assert compare.call_count == len(keys)


@pytest.mark.parametrize(
    "given", ["abc", "x" * 128, "a b ~!{}\"'<script>", "", "x" * 129, "ü", "a\tb", "\xff", "x" * 8000]
)
def test_a_callers_request_id_comes_back_if_it_may(send: Send, given: str) -> None:
    for path in ("/health", "/nothing"):
        answered = send("GET", path, environ={"HTTP_X_REQUEST_ID": given}).headers["X-Request-ID"]
        assert answered == given if re.fullmatch("[ -~]{1,128}", given) else UUID.fullmatch(answered)


@pytest.mark.parametrize("code", [201, 401, 404, 405, 415, 422])
def test_each_answer_has_its_log_line_without_key_and_content(persistence: Service, code: int) -> None:
    secret, request_id, key = f"secret-{uuid.uuid4()}", new_id(), f"key-{uuid.uuid4()}" if code == 401 else OTHER_KEY
    method, path = ("PATCH" if code == 405 else "POST"), ("/nothing\n" if code == 404 else "/messages/")
    message: dict[str, Any] = new_message(content=secret) | ({secret: secret} if code == 422 else {})
    options = {"data": secret} if code == 415 else {"json": message}
    headers = {"X-Request-ID": request_id, "x-api-key": key}
    assert persistence.request(method, path, headers=headers, **options).status_code == code
    line = persistence.log(request_id)
    assert 0 < line.pop("duration_ms") < 30_000
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    fixed = {"level": "info", "service": "persistence", "request_id": request_id}
    assert line == fixed | {"method": method, "path": path, "status": code}
    persistence.get("/messages/", params={"role": secret})
    assert not [hidden for hidden in (KEY, key, secret) if hidden in persistence.text()]


def test_a_refused_body_is_freed_with_its_response(client: FlaskClient) -> None:
    gc.collect()
    gc.disable()
    try:
        assert client.post("/messages/", json={"content": ""}).status_code == 422
        assert not [thing for thing in gc.get_objects() if type(thing) is ValidationError]
    finally:
        gc.enable()
