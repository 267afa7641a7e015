from typing import Any

import pytest
import requests
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.messages import new_id, store
from tests.services import KEY, Service

METHODS = {"get", "put", "post", "delete"}
ENDPOINTS = {
    ("get", "/health"),
    ("get", "/ready"),
    ("post", "/messages/"),
    ("get", "/messages/"),
    ("get", "/messages/{message_id}"),
    ("put", "/messages/{message_id}"),
    ("delete", "/messages/{message_id}"),
    ("get", "/chats/"),
    ("delete", "/chats/{chat_id}"),
}


@pytest.fixture(scope="module")
def document(persistence: Service) -> Any:
    return requests.get(f"{persistence.url}/openapi.json", timeout=10).json()


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def parameters(document: dict[str, Any], method: str, path: str) -> list[dict[str, Any]]:
    item = document["paths"][path]
    return [*item.get("parameters", []), *item[method].get("parameters", [])]


def json_of(response: dict[str, Any]) -> dict[str, Any]:
    media: dict[str, Any] = response["content"]["application/json"]
    return media


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_endpoint_is_there(operations: dict[tuple[str, str], Any]) -> None:
    assert set(operations) == ENDPOINTS


@pytest.mark.parametrize(("method", "path"), sorted(ENDPOINTS))
def test_an_operation_is_described(document: dict[str, Any], method: str, path: str) -> None:
    operation = document["paths"][path][method]
    assert operation["summary"]
    assert operation["tags"]
    assert operation.get("description") or operation["summary"] == "Read a message"
    for parameter in parameters(document, method, path):
        assert parameter["description"], parameter["name"]
        assert {"example", "examples"} & parameter["schema"].keys(), parameter["name"]
    assert operation.get("requestBody", {"description": "none"})["description"]
    for response in operation["responses"].values():
        assert response["description"]
        for header in response["headers"].values():
            name = header.get("$ref", "").removeprefix("#/components/headers/")
            described = document["components"]["headers"][name] if name else header
            assert described["description"]
            assert "example" in described["schema"]


@pytest.mark.parametrize(("method", "path"), sorted(ENDPOINTS))
def test_an_operation_names_its_answers(document: dict[str, Any], method: str, path: str) -> None:
    operation = document["paths"][path][method]
    codes = {int(code) for code in operation["responses"]}
    expected = {500}
    expected |= set() if path in ("/health", "/ready") else {401, 422, 503}
    expected |= {503} if path == "/ready" else set()
    expected |= {400, 413, 415} if "requestBody" in operation else set()
    expected |= {404} if "{" in path else set()
    expected |= {("post", "/messages/"): {200, 201, 409}}.get((method, path), {204 if method == "delete" else 200})
    assert codes == expected
    assert "X-Request-ID" in operation["responses"]["500"]["headers"]
    assert codes.isdisjoint({401}) or "WWW-Authenticate" in operation["responses"]["401"]["headers"]
    assert codes.isdisjoint({503}) or "Retry-After" in operation["responses"]["503"]["headers"]


def test_security_is_only_where_a_key_is_needed(document: dict[str, Any], operations: dict[Any, Any]) -> None:
    needed = {key: operation.get("security", document["security"]) for key, operation in operations.items()}
    assert {path for (_, path), security in needed.items() if not security} == {"/health", "/ready"}
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "x-api-key")


def examples(document: dict[str, Any]) -> list[tuple[dict[str, Any], Any]]:
    """Every example of a body or an answer, with its schema."""
    found = []
    for item in document["paths"].values():
        for method, operation in item.items():
            if method in METHODS:
                for holder in (*operation["responses"].values(), operation.get("requestBody", {})):
                    found += [
                        (media["schema"], media["example"])
                        for media in holder.get("content", {}).values()
                        if "example" in media
                    ]
    return found


def test_every_example_is_what_its_schema_says(document: dict[str, Any]) -> None:
    assert len(examples(document)) > 20
    for schema, example in examples(document):
        OAS31Validator(schema | {"components": document["components"]}).validate(example)


def test_every_answer_and_body_has_an_example(operations: dict[Any, Any], document: dict[str, Any]) -> None:
    for operation in operations.values():
        for holder in (*operation["responses"].values(), operation.get("requestBody", {})):
            for media in holder.get("content", {}).values():
                name = media["schema"].get("$ref", "").rpartition("/")[2]
                fields = document["components"]["schemas"].get(name, {}).get("properties", {})
                assert "example" in media or (fields and all("example" in field for field in fields.values()))


def test_a_filter_is_not_filled_in(document: dict[str, Any]) -> None:
    """Swagger UI sends what a parameter's schema has as its `example`."""
    for path in ("/messages/", "/chats/"):
        filled = [
            parameter["name"] for parameter in parameters(document, "get", path) if "example" in parameter["schema"]
        ]
        assert filled == ["limit"]


def test_the_example_of_a_new_message_can_be_sent_as_it_is(persistence: Service, document: dict[str, Any]) -> None:
    body = document["paths"]["/messages/"]["post"]["requestBody"]
    assert body["required"] is True
    response = persistence.post("/messages/", json=json_of(body)["example"])
    assert response.status_code == 201


def test_the_example_of_a_change_can_be_sent_as_it_is(persistence: Service, document: dict[str, Any]) -> None:
    example = json_of(document["paths"]["/messages/{message_id}"]["put"]["requestBody"])["example"]
    stored = store(persistence)
    assert persistence.request("PUT", f"/messages/{stored['message_id']}", json=example).json() == stored | example


@pytest.mark.parametrize("path", ["/messages/", "/chats/"])
def test_the_examples_of_parameters_are_right(persistence: Service, document: dict[str, Any], path: str) -> None:
    for parameter in parameters(document, "get", path):
        schema = parameter["schema"]
        for value in (*schema.get("enum", []), *schema.get("examples", []), schema.get("example")):
            response = persistence.get(path, params={"limit": 1} | {parameter["name"]: value})
            assert response.status_code == 200 or "There is no" in response.json()["errors"]["after"][0]


def test_real_answers_are_what_the_schemas_say(persistence: Service, document: dict[str, Any]) -> None:
    message = store(persistence, rating=False)
    answers = [
        ("get", "/messages/{message_id}", persistence.get(f"/messages/{message['message_id']}")),
        ("get", "/messages/{message_id}", persistence.get(f"/messages/{new_id()}")),
        ("get", "/messages/", persistence.get("/messages/?limit=2")),
        ("get", "/messages/", persistence.get("/messages/?limit=x")),
        ("get", "/chats/", persistence.get("/chats/?limit=2")),
        ("post", "/messages/", persistence.post("/messages/", json=message)),
        ("post", "/messages/", persistence.post("/messages/", json=message | {"role": "ai"})),
        ("post", "/messages/", persistence.post("/messages/", data=b"{}")),
        ("get", "/health", persistence.get("/health")),
    ]
    for method, path, answer in answers:
        described = document["paths"][path][method]["responses"][str(answer.status_code)]
        schema = json_of(described)["schema"] | {"components": document["components"]}
        OAS31Validator(schema).validate(answer.json())
        assert set(described["headers"]) - {"Link"} <= set(answer.headers)


@pytest.mark.parametrize("end", ["", "/"])
def test_the_page_is_served_under_a_strict_policy(persistence: Service, end: str) -> None:
    response = requests.get(f"{persistence.url}/docs{end}", timeout=10, allow_redirects=False)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "<script>" not in response.text
    assert "://" not in response.text


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("start.js", "text/javascript"),
        ("favicon-32x32.png", "image/png"),
    ],
)
def test_the_pages_files_are_served(persistence: Service, name: str, media: str) -> None:
    page = requests.get(f"{persistence.url}/docs", timeout=10).text
    assert f'"/docs/{name}"' in page
    response = requests.get(f"{persistence.url}/docs/{name}", timeout=10)
    assert (response.status_code, response.headers["Content-Type"].split(";")[0]) == (200, media)
    assert response.content


@pytest.mark.parametrize(
    "path",
    [
        "/docs/../openapi.json",
        "/docs/../../__init__.py",
        "/docs/../../../flask/app.py",
        "/docs/%2e%2e/%2e%2e/__init__.py",
        "/docs/..%2f..%2f__init__.py",
        "/docs/..%5c__init__.py",
        "/docs/%252e%252e/__init__.py",
        "/docs/....//__init__.py",
        "/docs//etc/passwd",
        "/docs/%2fetc%2fpasswd",
        "/docs/file:///etc/passwd",
        "/docs/swagger-ui.css%00.py",
        "/docs/%00",
        "/docs/.",
        "/docs/..",
        "/docs/./../",
    ],
)
def test_no_path_leads_out_of_the_pages_files(persistence: Service, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-api-key: {KEY}\r\n\r\n"
    response = persistence.raw(request.encode())
    assert response.split()[1] == b"404"
    assert response.endswith(b"}\n")
