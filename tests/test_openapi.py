"""Both services' OpenAPI documents, whether what is answered keeps to them, and the page that shows them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

import chat.app
import chat.settings
from tests.messages import new_message
from tests.services import KEY, Service

ONE = "/messages/{message_id}"
READ, WRITTEN = "401 422 500 503", "400 401 408 413 415 422 500 503"
OPERATIONS = {  # and the statuses that each may have
    ("persistence", "get", "/health"): "200 500",
    ("persistence", "get", "/ready"): "200 500 503",
    ("persistence", "get", "/messages/"): f"200 {READ}",
    ("persistence", "post", "/messages/"): f"200 201 409 {WRITTEN}",
    ("persistence", "get", ONE): f"200 404 {READ}",
    ("persistence", "put", ONE): f"200 404 {WRITTEN}",
    ("persistence", "delete", ONE): f"204 404 {READ}",
    ("persistence", "get", "/chats/"): f"200 {READ}",
    ("persistence", "delete", "/chats/{chat_id}"): f"204 404 {READ}",
    ("persistence", "put", "/turns/"): f"200 {WRITTEN}",
    ("persistence", "delete", "/turns/{message_id}"): f"204 404 {READ}",
    ("chat", "get", "/health"): "200 500",
    ("chat", "get", "/ready"): "200 500 503",
    ("chat", "post", "/chat"): f"200 409 502 504 {WRITTEN}",
    ("chat", "get", "/chat/{chat_id}"): f"200 404 502 {READ}",
}
OF_STATUS = {"401": ["WWW-Authenticate"], "503": ["Retry-After"]}


@pytest.fixture(scope="module")
def documents(client: FlaskClient) -> dict[str, Any]:
    chat_client = chat.app.create_app(chat.settings.Settings()).test_client()
    return {"persistence": client.get("/openapi.json").json, "chat": chat_client.get("/openapi.json").json}


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return the part itself, or the named one that it refers to."""
    for name in part.get("$ref", "#").split("/")[1:]:
        document = document[name]
    return document if "$ref" in part else part


@pytest.mark.parametrize("service", ["persistence", "chat"])
def test_the_document_is_valid_and_names_every_endpoint(documents: dict[str, Any], service: str) -> None:
    document = documents[service]
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    paths = document["paths"].items()
    found = {(service, method, path) for path, item in paths for method in item.keys() - {"parameters"}}
    assert found == {operation for operation in OPERATIONS if operation[0] == service}
    scheme = document["components"]["securitySchemes"]["ApiKey"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "x-api-key")


@pytest.mark.parametrize(("service", "method", "path"), OPERATIONS)
def test_an_operation_tells_everything(documents: dict[str, Any], service: str, method: str, path: str) -> None:
    document = documents[service]
    item, operation, is_open = document["paths"][path], document["paths"][path][method], path in ("/health", "/ready")
    assert operation["summary"]
    assert operation["tags"]
    assert operation.get("description") or operation["summary"] == "Read a message"
    assert operation.get("security", document["security"]) == ([] if is_open else [{"ApiKey": []}])
    for parameter in [*item.get("parameters", []), *operation.get("parameters", [])]:
        assert parameter["description"]
        assert {"example", "examples"} & parameter["schema"].keys(), parameter["name"]
    answers = {code: resolved(document, response) for code, response in operation["responses"].items()}
    assert list(answers) == sorted(OPERATIONS[service, method, path].split())
    for code, answer in answers.items():
        headers = {name: resolved(document, header) for name, header in answer["headers"].items()}
        assert all(header["description"] and "example" in header["schema"] for header in headers.values())
        assert {"X-Request-ID", *OF_STATUS.get(code, [])} <= headers.keys()
    for holder in [*answers.values(), *([operation["requestBody"]] if "requestBody" in operation else [])]:
        assert holder["description"]
        for kind, media in holder.get("content", {}).items():
            fields = resolved(document, media["schema"]).get("properties", {})
            example = media.get("example") or {name: fields[name]["examples"][0] for name in fields}
            if kind != "text/event-stream":  # whose schema is of one event
                OAS31Validator(media["schema"] | {"components": document["components"]}).validate(example)


def test_a_change_of_nothing_is_invalid(documents: dict[str, Any]) -> None:
    components = documents["persistence"]["components"]
    changes = OAS31Validator({"$ref": "#/components/schemas/MessageChanges", "components": components})
    bodies: list[Any] = [{"rating": None}, {"content": "x", "role": "ai"}, {}, {"role": "ai"}]
    assert [changes.is_valid(body) for body in bodies] == [True, True, False, False]


def test_lists_have_their_link_and_no_filter_is_filled_in(documents: dict[str, Any]) -> None:
    """Swagger UI sends what a parameter's schema has as its `example`."""
    for service, path in (("persistence", "/messages/"), ("persistence", "/chats/"), ("chat", "/chat/{chat_id}")):
        operation = documents[service]["paths"][path]["get"]
        assert "Link" in operation["responses"]["200"]["headers"]
        assert [one["name"] for one in operation["parameters"] if "example" in one["schema"]] == ["limit"]


def test_the_page_and_its_files_are_served_under_a_strict_policy(client: FlaskClient) -> None:
    page = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert (page.mimetype, policy["default-src"], policy["script-src"]) == ("text/html", "'none'", "'self'")
    assert "<script>" not in page.text
    assert "://" not in page.text
    files = {"swagger-ui.css": "text/css", "favicon-32x32.png": "image/png"}
    for name, media in (files | dict.fromkeys(("swagger-ui-bundle.js", "start.js"), "text/javascript")).items():
        assert f'"/docs/{name}"' in page.text
        response = client.get(f"/docs/{name}", buffered=True)
        assert (response.status_code, response.mimetype, bool(response.data)) == (200, media, True)


SERIALIZER = """
import schemathesis

@schemathesis.serializer("application/x-ndjson")
def lines(context, value):
    return f"{value}".encode(errors="surrogatepass")
"""


def test_the_examples_can_be_sent_as_they_are(client: FlaskClient, documents: dict[str, Any]) -> None:
    paths = documents["persistence"]["paths"]
    media = paths["/messages/"]["post"]["requestBody"]["content"]
    assert client.post("/messages/", json=media["application/json"]["example"]).status_code == 201
    lines = media["application/x-ndjson"]["example"]
    assert client.post("/messages/", data=lines, content_type="application/x-ndjson").status_code == 200
    change = paths[ONE]["put"]["requestBody"]["content"]["application/json"]["example"]
    stored: Any = client.post("/messages/", json=new_message()).json
    assert client.put(f"/messages/{stored['message_id']}", json=change).json == stored | change


@pytest.mark.slow
@pytest.mark.parametrize("name", ["persistence", "chat"])
def test_thousands_of_requests_get_what_the_document_says(name: str, request: Any, folder: Path) -> None:
    service: Service = request.getfixturevalue(name)
    (folder / "hooks.py").write_text(SERIALIZER)
    command = [f"{Path(sys.executable).with_name('schemathesis')}", "run", f"{service.url}/openapi.json"]
    command += ["-H", f"x-api-key: {KEY}", "--checks", "all", "--max-examples", "50", "--seed", "1"]
    # a document can't say that `after` must exist, nor that an id in the body must be the one in the path (a 422);
    # nor that a message goes with its chat: after a DELETE of that, one that was just made is a 404
    # and a turn waits, for 20 s at most, if the example of PUT /turns/ has marked it as at work
    command += ["--exclude-checks", "positive_data_acceptance,ensure_resource_availability"]
    command += ["--request-timeout", "60", "--max-response-time", "60"]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": f"{folder}"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout
