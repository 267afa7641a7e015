import gzip
import json
import re
import uuid
from typing import Any

import pytest
import requests

from tests.messages import assert_error, new_id, new_message, store
from tests.services import KEY, OTHER_KEY, ROOT, Service

JSON = {"Content-Type": "application/json"}
MIB = 1024 * 1024
SECRETS = re.compile(
    r'Traceback|File "|\bSELECT\b|\bINSERT\b|psycopg|site-packages|/home/|\.py\b|' + re.escape(str(ROOT))
)
UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

OPEN = ["/health", "/ready", "/docs", "/docs/swagger-ui.css", "/openapi.json"]
CLOSED = [
    ("GET", "/messages/"),
    ("POST", "/messages/"),
    ("GET", f"/messages/{new_id()}"),
    ("PUT", f"/messages/{new_id()}"),
    ("DELETE", f"/messages/{new_id()}"),
    ("GET", "/chats/"),
    ("DELETE", f"/chats/{new_id()}"),
    ("GET", "/"),
    ("GET", "/nothing"),
    ("PATCH", "/messages/"),
    ("OPTIONS", "/messages/"),
    ("GET", "/healthy"),
    ("GET", "/docs.json"),
    ("GET", "/messages/health"),
]


def raw_request(line: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: x", "Connection: close", f"x-api-key: {KEY}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def parts(response: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_opens(persistence: Service, key: str) -> None:
    assert persistence.get("/messages/?limit=1", headers={"x-api-key": key}).status_code == 200


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("end", ["", "/"])
def test_what_needs_no_key(persistence: Service, path: str, end: str) -> None:
    response = requests.get(f"{persistence.url}{path}{end}", allow_redirects=False, timeout=10)
    assert response.status_code == 200


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_all_else_needs_a_key(persistence: Service, method: str, path: str) -> None:
    response = requests.request(method, persistence.url + path, json={"wrong": 1}, timeout=10)
    assert_error(response, 401)
    assert response.headers["WWW-Authenticate"] == "ApiKey"


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"wrong",
        KEY.upper().encode(),
        KEY[:-1].encode(),
        f"{KEY}x".encode(),
        f"{KEY},{KEY}".encode(),
        f"{KEY}\\n{OTHER_KEY}".encode(),
        f"ApiKey {KEY}".encode(),
        "schlüssel".encode(),
        "schlüssel".encode("latin-1"),
        "鍵".encode(),
        b"\xff\xfe",
        b"x" * 8000,
    ],
)
def test_a_wrong_key_is_turned_away(persistence: Service, key: bytes) -> None:
    status, headers, body = parts(
        persistence.raw(b"GET /messages/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: " + key + b"\r\n\r\n")
    )
    assert (status, headers["www-authenticate"]) == (401, "ApiKey")
    assert json.loads(body)["code"] == 401


def test_a_key_twice_is_no_key(persistence: Service) -> None:
    assert parts(persistence.raw(raw_request("GET /messages/", f"x-api-key: {KEY}")))[0] == 401


def test_a_key_counts_in_no_other_place(persistence: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "api-key": KEY, "x-api-keys": KEY}
    response = requests.get(
        f"{persistence.url}/messages/?api_key={KEY}", headers=headers, cookies={"x-api-key": KEY}, timeout=10
    )
    assert_error(response, 401)


@pytest.mark.parametrize(
    ("path", "body", "content_type", "method", "code"),
    [
        ("/nothing", b"x" * (MIB + 1), "text/plain", "POST", 404),
        ("/messages/", b"x" * (MIB + 1), "text/plain", "PATCH", 405),
        ("/messages/", b"x" * (MIB + 1), "text/plain", "POST", 413),
        ("/messages/?x=1", b"{", "text/plain", "POST", 415),
        ("/messages/?x=1", b"{", "application/json", "POST", 400),
        ("/messages/", b"{}", "application/json", "POST", 422),
        (f"/messages/{new_id()}", b"x" * (MIB + 1), "text/plain", "PUT", 413),
        (f"/messages/{new_id()}", b"{", "text/plain", "PUT", 415),
        (f"/messages/{new_id()}", b"{", "application/json", "PUT", 400),
    ],
)
def test_the_order_of_the_checks(
    persistence: Service, path: str, body: bytes, content_type: str, method: str, code: int
) -> None:
    headers = {"Content-Type": content_type}
    response = persistence.request(method, path, data=body, headers=headers)
    assert response.status_code == code
    assert persistence.request(method, path, data=body, headers=headers | {"x-api-key": "x"}).status_code == 401


@pytest.mark.parametrize("path", ["/", "/nothing", "/messages/x/y", "/chats/x", "/message", "/messages/x", "/Health"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_an_unknown_path(persistence: Service, path: str, method: str) -> None:
    assert_error(persistence.request(method, path), 404)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/messages/", "GET, HEAD, OPTIONS, POST"),
        (f"/messages/{new_id()}", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/chats/", "GET, HEAD, OPTIONS"),
        (f"/chats/{new_id()}", "DELETE, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/ready", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
@pytest.mark.parametrize("end", ["", "/"])
def test_a_wrong_method_is_told_the_right_ones(persistence: Service, path: str, methods: str, end: str) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"} - set(methods.split(", ")):
        response = persistence.request(method, path.rstrip("/") + end)
        assert_error(response, 405)
        assert response.headers["Allow"] == methods


@pytest.mark.parametrize("size", [MIB, MIB + 1])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_one_mebibyte_and_no_more(persistence: Service, size: int, chunked: bool) -> None:
    body = json.dumps(new_message()).encode()
    body += b" " * (size - len(body))
    response = persistence.post("/messages/", data=iter([body[:500], body[500:]]) if chunked else body, headers=JSON)
    if size > MIB:
        assert_error(response, 413)
    else:
        assert response.status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",  # what curl -d sends
        "multipart/form-data; boundary=x",
        "application/problem+json",
        "application/jsonp",
        "application/json, text/plain",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset=nonsense",
        "json",
    ],
)
def test_another_content_type(persistence: Service, content_type: str | None) -> None:
    body = json.dumps(new_message()).encode()
    assert_error(persistence.post("/messages/", data=body, headers={"Content-Type": content_type}), 415)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"'],
)
def test_json_by_all_its_names(persistence: Service, content_type: str) -> None:
    body = json.dumps(new_message(content="ü😀"), ensure_ascii=False).encode()
    response = persistence.post("/messages/", data=body, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["content"]) == (201, "ü😀")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "nonsense"])
def test_a_packed_body(persistence: Service, encoding: str) -> None:
    body = gzip.compress(json.dumps(new_message()).encode())
    assert_error(persistence.post("/messages/", data=body, headers=JSON | {"Content-Encoding": encoding}), 415)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}x",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a"}',
        b"undefined",
        b'{"content": NaN}',
        b'{"content": Infinity}',
        b'{"content": -Infinity}',
        b'{"content": 01}',
        b'{"content": "\xff"}',
        b'{"content": "\xed\xa0\x80"}',  # a surrogate, as no UTF-8 has it
        b'{"content": "\n"}',
        b'{"content": "\0"}',
        b'{"content": "\\x"}',
        '{"content": "ü"}'.encode("utf-16"),
        b'{"role": "ai", "role": "ai"}',
        b'{"content": {"a": 1, "a": 1}}',
        b'{"role": "ai", "r\\u006fle": "human"}',
        b'{"content": ' + b"9" * 1_000_000 + b"}",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json(persistence: Service, body: bytes) -> None:
    assert_error(persistence.post("/messages/", data=body, headers=JSON), 400)
    assert_error(persistence.request("PUT", f"/messages/{new_id()}", data=body, headers=JSON), 400)


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"1", b"true", b"1e999", b"[{}]"])
def test_json_that_is_no_object(persistence: Service, body: bytes) -> None:
    assert_error(persistence.post("/messages/", data=body, headers=JSON), 422)


@pytest.mark.parametrize("value", ["1e999", "1" * 4000, "-0.0", "[" * 200 + "]" * 200, '{"a": null}'])
def test_json_of_odd_values(persistence: Service, value: str) -> None:
    for name in new_message():
        message = json.dumps(new_message(**{name: "VALUE"})).replace('"VALUE"', value)
        assert_error(persistence.post("/messages/", data=message, headers=JSON), 422, name)


@pytest.mark.parametrize(
    "chunks", [b"zz\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n", b"\r\n\r\n"]
)
def test_malformed_chunks(persistence: Service, chunks: bytes) -> None:
    request = raw_request(
        "POST /messages/", "Content-Type: application/json", "Transfer-Encoding: chunked", body=chunks
    )
    assert parts(persistence.raw(request))[0] == 400


def test_an_error_repeats_little_of_what_it_was_sent(persistence: Service) -> None:
    many = {"n" * 9000 + f"{number}": 1 for number in range(100)}
    response = persistence.post("/messages/", json=many)
    assert response.status_code == 422
    assert {"chat_id", "content", "role"} <= set(response.json()["errors"])
    assert len(response.content) < 10_000


SQL = ["'", "';--", "' OR '1'='1", "1; DROP TABLE messages", "%s", "%(limit)s", "{filters}", "$1", "\\", "\\'", "NULL"]


@pytest.mark.parametrize("name", ["chat_id", "role", "rating", "since", "until", "order", "after", "limit", "x' OR 1"])
@pytest.mark.parametrize("path", ["/messages/", "/chats/"])
def test_sql_in_a_parameter_is_a_wrong_value(persistence: Service, path: str, name: str) -> None:
    for value in (*SQL, "\0", "\ud800".encode("utf-8", "surrogatepass")):
        response = persistence.get(path, params={name: value})
        assert_error(response, 422, name)
        assert not SECRETS.search(response.text)


@pytest.mark.parametrize("content", SQL)
def test_sql_in_a_content_is_text(persistence: Service, content: str) -> None:
    message = store(persistence, content=content)
    changed = persistence.request("PUT", f"/messages/{message['message_id']}", json={"content": content * 2})
    assert (message["content"], changed.json()["content"]) == (content, content * 2)


@pytest.mark.parametrize("name", ["message_id", "chat_id", "content", "sent_at", "role"])
@pytest.mark.parametrize("value", ["\0", "a\0b", "\ud800", "\udfff\ud83d", "2026-11-23T16:04:05Z\0"])
def test_no_string_takes_nul_or_a_lone_surrogate(persistence: Service, name: str, value: str) -> None:
    assert_error(persistence.post("/messages/", json=new_message(**{name: value})), 422, name)
    stored = store(persistence)
    changes = {"rating": True} | {name: value}
    assert_error(persistence.request("PUT", f"/messages/{stored['message_id']}", json=changes), 422, name)


@pytest.mark.parametrize(
    "path",
    [
        "/messages/%00",
        "/messages/%zz",
        "/messages/%",
        "/messages/%ff%fe",
        "/messages/%ed%a0%80",
        "/messages/..%2f..%2fetc%2fpasswd",
        "/messages/../../etc/passwd",
        "/messages/%2e%2e/health%00",
        "/../messages/",
        "/%2e%2e/messages/",
        "/messages/;a=b",
        "/messages\\",
        "/messages/%0d%0aX-Injected:%201",
        "/messages/" + "9" * 7000,
        "/" + "a/" * 3500,
        "/%F0%9F%98%80",
        "/nothing?" + "a=b&" * 1500,
        "/{path}",
        "/messages/{{7*7}}",
    ],
)
def test_odd_paths_are_not_found(persistence: Service, path: str) -> None:
    status, headers, body = parts(persistence.raw(raw_request(f"GET {path}")))
    assert status == 404
    assert json.loads(body)["code"] == 404
    assert "x-injected" not in headers


@pytest.mark.parametrize("target", ["*", "messages/", "http://[/", "\xff", "/ /", "", "/messages/?\xff", "//", "/a\tb"])
def test_odd_targets_are_the_callers_error(persistence: Service, target: str) -> None:
    assert 400 <= parts(persistence.raw(raw_request(f"GET {target}")))[0] < 500


@pytest.mark.parametrize(
    "host", ["", "a b", "\xff", "[::1", "x:abc", "x:99999999", "<script>", "a,b", "'", "../..", "x" * 5000]
)
def test_odd_hosts_leave_no_trace(persistence: Service, host: str) -> None:
    lines = f"POST /messages/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nx-api-key: {KEY}\r\n"
    body = json.dumps(new_message()).encode()
    lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    status, headers, _ = parts(persistence.raw(lines.encode("latin-1") + body))
    assert status == 201 or 400 <= status < 500
    assert headers.get("location", "/messages/").startswith("/messages/")


@pytest.mark.parametrize("given", ["abc", "x" * 128, "a b ~!{}\"'", "<script>"])
def test_a_callers_request_id_comes_back_and_is_logged(persistence: Service, given: str) -> None:
    request_id = f"{new_id()}{given}"[-128:]
    for path in ("/messages/?limit=1", "/nothing", "/health"):
        response = persistence.get(path, headers={"X-Request-ID": request_id})
        assert response.headers["X-Request-ID"] == request_id
    assert persistence.log(request_id)["status"] == 200


@pytest.mark.parametrize("given", ["", " ", "x" * 129, "ü", "a\tb", "\xff", "x" * 8000])
def test_another_request_id_is_replaced(persistence: Service, given: str) -> None:
    headers = parts(persistence.raw(raw_request("GET /health", f"X-Request-ID: {given}")))[1]
    assert UUID.fullmatch(headers["x-request-id"])


def test_a_request_id_holds_no_line_break(persistence: Service) -> None:
    for line_break in ("\n", "\r", "\r\n "):
        response = persistence.raw(raw_request("GET /health", f"X-Request-ID: a{line_break}X-Injected: 1"))
        status, headers, _ = parts(response)
        assert "x-injected" not in headers
        assert status == 400 or UUID.fullmatch(headers["x-request-id"])


def test_each_request_has_an_id_of_its_own(persistence: Service) -> None:
    ids = {persistence.get(path).headers["X-Request-ID"] for path in ("/health", "/health", "/nothing", "/messages/")}
    assert len(ids) == 4
    assert all(UUID.fullmatch(request_id) for request_id in ids)


@pytest.mark.parametrize(
    ("method", "path", "options", "code"),
    [
        ("GET", "/health", {}, 200),
        ("GET", "/ready", {}, 200),
        ("GET", "/docs", {}, 200),
        ("GET", "/docs/swagger-ui.css", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/messages/", {}, 200),
        ("GET", "/messages/?limit=1", {}, 200),
        ("GET", "/chats/", {}, 200),
        ("POST", "/messages/", {"json": new_message()}, 201),
        ("DELETE", f"/messages/{new_id()}", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("PATCH", "/messages/", {}, 405),
        ("POST", "/messages/", {"data": b"x" * (MIB + 1)}, 413),
        ("POST", "/messages/", {"data": b"{}"}, 415),
        ("POST", "/messages/", {"data": b"{", "headers": JSON}, 400),
        ("POST", "/messages/", {"json": {}}, 422),
        ("GET", "/messages/", {"headers": {"x-api-key": "x"}}, 401),
        ("OPTIONS", "/messages/", {}, 200),
    ],
)
def test_every_answer(persistence: Service, method: str, path: str, options: dict[str, Any], code: int) -> None:
    """It has its id, is what it says, opens the service to no other site, and tells nothing of what is inside."""
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"} | options.pop("headers", {})
    response = persistence.request(method, path, headers=headers, **options)
    assert response.status_code == code
    assert UUID.fullmatch(response.headers["X-Request-ID"])
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not [name for name in response.headers if name.lower().startswith(("access-control", "set-cookie"))]
    assert "Retry-After" not in response.headers
    if not path.startswith("/docs/"):
        assert not SECRETS.search(response.text)


def test_a_log_line_has_its_fields(persistence: Service) -> None:
    request_id = new_id()
    persistence.get("/messages/?limit=1", headers={"X-Request-ID": request_id})
    line = persistence.log(request_id)
    fixed = {"level": "info", "service": "persistence", "request_id": request_id}
    assert list(line) == ["time", *fixed, "method", "path", "status", "duration_ms"]
    assert fixed.items() <= line.items()
    assert (line["method"], line["path"], line["status"]) == ("GET", "/messages/", 200)
    assert 0 < line["duration_ms"] < 30_000


@pytest.mark.parametrize("code", [401, 404, 405, 415, 400, 422])
def test_a_failure_has_a_log_line_too(persistence: Service, code: int) -> None:
    request_id = new_id()
    headers = {"X-Request-ID": request_id} | ({"x-api-key": "x"} if code == 401 else {}) | (JSON if code == 400 else {})
    method, path = ("PATCH" if code == 405 else "POST"), ("/nothing\n" if code == 404 else "/messages/")
    options: dict[str, Any] = {"json": {}} if code == 422 else {"data": b"{"}
    assert persistence.request(method, path, headers=headers, **options).status_code == code
    assert persistence.log(request_id)["status"] == code


def test_no_key_and_no_content_is_logged(persistence: Service) -> None:
    content, wrong_key, last = f"secret-{uuid.uuid4()}", f"key-{uuid.uuid4()}", new_id()
    message = store(persistence, content=content)
    persistence.request("PUT", f"/messages/{message['message_id']}", json={"content": f"{content} changed"})
    persistence.post("/messages/", json=message | {"content": f"{content} other"})
    persistence.post("/messages/", json={content: content})
    persistence.post("/messages/", data=f'{{"content": "{content}', headers=JSON)
    persistence.post("/messages/", data=f'{{"content": "{content}"}}')
    persistence.get("/messages/", params={"role": content, "chat_id": message["chat_id"]})
    persistence.get("/messages/", params={"chat_id": message["chat_id"]})
    persistence.get("/chats/")
    persistence.get("/messages/", headers={"x-api-key": wrong_key})
    persistence.get("/health", headers={"X-Request-ID": last})
    assert persistence.log(last)
    text = persistence.text()
    assert not [secret for secret in (KEY, OTHER_KEY, wrong_key, content) if secret in text]
