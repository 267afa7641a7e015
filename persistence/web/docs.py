"""Swagger UI on /docs, from the files of the package flask-swagger-ui, and /openapi.json beside it."""

from http import HTTPStatus
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Flask, render_template, send_from_directory
from flask.typing import ResponseReturnValue

from persistence.web import errors
from persistence.web.auth import HEADER
from persistence.web.errors import ServiceApi

FOLDER = Path(__file__).parent  # of docs.html and start.js
DIST = Path(flask_swagger_ui.__file__).parent / "dist"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def header(name: str, description: str, example: str) -> dict[str, Any]:
    """Return what the document says of a response's header."""
    return {name: {"description": description, "schema": {"type": "string", "example": example}}}


def link(path: str) -> dict[str, Any]:
    """Return what the document says of the Link header of a list, with `path` as an example."""
    description = "While there is more: the next page's address, relative to this one (RFC 8288)."
    return header("Link", description, f'<{path}>; rel="next"')


REQUEST_ID = header(
    "X-Request-ID",
    "The caller's own X-Request-ID, else a fresh UUID; it is on every log line of the request.",
    "3f0b6d1c-5a52-4a0e-9a53-0f5c3f1d2a77",
)
HEADERS = {
    401: header("WWW-Authenticate", "How to authorize: always ApiKey.", "ApiKey"),
    503: header("Retry-After", "Seconds after which to try again.", "1"),
}


def init_app(app: Flask, description: str) -> ServiceApi:
    """Serve the page, its files and the OpenAPI document, and return the flask-smorest Api that writes the document."""
    api = ServiceApi(
        app,
        spec_kwargs={
            "title": app.name.capitalize(),
            "version": "1.0.0",
            "openapi_version": "3.1.0",
            "info": {"description": description},
            "servers": [{"url": "/", "description": "Where this page comes from."}],
            "security": [{"ApiKey": []}],
        },
    )
    api.spec.components.security_scheme(
        "ApiKey", {"type": "apiKey", "in": "header", "name": HEADER, "description": "A key that the operator gave you."}
    )

    @app.get("/openapi.json")
    def openapi() -> ResponseReturnValue:
        return _complete(api.spec.to_dict())

    @app.get("/docs")
    def docs() -> ResponseReturnValue:
        page = render_template("docs.html", title=api.spec.title)
        return page, {"Content-Security-Policy": CONTENT_SECURITY_POLICY}

    @app.get("/docs/<path:name>")
    def docs_file(name: str) -> ResponseReturnValue:
        return send_from_directory(FOLDER if name == "start.js" else DIST, name, max_age=3600)

    return api


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add what holds for every operation: the request's id, and the errors that any request can meet."""
    document["components"]["schemas"].pop("PaginationMetadata", None)  # flask-smorest's, which nothing here has
    document["components"]["responses"] = {HTTPStatus(status).name: _error(status) for status in errors.MESSAGES}
    for path in document["paths"].values():
        parameters = path.get("parameters", [])
        for parameter in parameters:
            parameter["description"] = f"The {parameter['name'].removesuffix('_id')}'s id, a UUID of version 4."
        for operation in [part for part in path.values() if isinstance(part, dict)]:
            statuses = {500} if operation.get("security") == [] else {401, 422, 500, 503}
            statuses |= {404} if parameters else set()
            statuses |= {400, 408, 413, 415} if "requestBody" in operation else set()
            named = {str(s): {"$ref": f"#/components/responses/{HTTPStatus(s).name}"} for s in statuses}
            operation["responses"] = dict(sorted((operation["responses"] | named).items()))
            for response in [r for r in operation["responses"].values() if "$ref" not in r]:
                response["headers"] = response.get("headers", {}) | REQUEST_ID
    return document


def _error(status: int) -> dict[str, Any]:
    wrong = {"role": ["Must be one of: ai, human."]} if status == 422 else None
    content = {"schema": {"$ref": "#/components/schemas/Error"}, "example": errors.answer(status, errors=wrong)[0]}
    return {
        "description": errors.MESSAGES[status],
        "content": {"application/json": content},
        "headers": REQUEST_ID | HEADERS.get(status, {}),
    }
