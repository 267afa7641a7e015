"""Swagger UI on /docs, from the files of the package flask-swagger-ui, and /openapi.json beside it."""

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import flask_swagger_ui
from flask import Flask, Response, json, send_from_directory

from persistence.web import errors
from persistence.web.auth import HEADER
from persistence.web.errors import ServiceApi

DIST = Path(flask_swagger_ui.__file__).parent / "dist"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# a file of its own: the policy forbids inline scripts
START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null,
});
"""
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-ID": {
        "description": "The caller's own X-Request-ID, else a fresh UUID; it is on every log line of the request.",
        "schema": {"type": "string", "example": "3f0b6d1c-5a52-4a0e-9a53-0f5c3f1d2a77"},
    },
    "WWW-Authenticate": {
        "description": "How to authorize.",
        "schema": {"type": "string", "enum": ["ApiKey"], "example": "ApiKey"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "string", "example": "1"},
    },
}
HEADERS_OF = {401: ["WWW-Authenticate"], 503: ["Retry-After"]}  # beside the request's id


def link(path: str) -> dict[str, Any]:
    """Return what the document says of the Link header of a list, with `path` as an example."""
    description = "While there is more: the next page's address, relative to this one (RFC 8288)."
    return {"Link": {"description": description, "schema": {"type": "string", "example": f'<{path}>; rel="next"'}}}


def configure(app: Flask, title: str, version: str, description: str) -> ServiceApi:
    """Return the app's flask-smorest Api, which writes its OpenAPI document."""
    app.config.update(
        API_TITLE=title,
        API_VERSION=version,
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={
            "info": {"description": description},
            "servers": [{"url": "/", "description": "Where this page comes from."}],
            "security": [{"ApiKey": []}],
        },
    )
    return ServiceApi(app)


def init_app(app: Flask, api: ServiceApi) -> None:
    """Serve the page, its files, and the document, which is finished at the first request for it."""
    api.spec.components.security_scheme(
        "ApiKey", {"type": "apiKey", "in": "header", "name": HEADER, "description": "A key that the operator gave you."}
    )

    @cache
    def document() -> str:
        return json.dumps(_finish(api.spec.to_dict()), indent=2)

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(document(), mimetype="application/json")

    @app.get("/docs")
    def docs() -> Response:
        response = Response(PAGE.format(title=api.spec.title), mimetype="text/html")
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    @app.get("/docs/start.js")
    def start() -> Response:
        return Response(START, mimetype="text/javascript")

    @app.get("/docs/<path:name>")
    def static_file(name: str) -> Response:
        return send_from_directory(DIST, name, max_age=3600)


def _finish(document: dict[str, Any]) -> dict[str, Any]:
    """Add what holds for every operation: the request id, and the errors that any request can meet."""
    components = document["components"]
    components["headers"] = HEADERS
    components["schemas"].pop("PaginationMetadata", None)  # flask-smorest's, which nothing here has
    components["responses"] = {HTTPStatus(status).name: _error(status) for status in errors.TEXTS}
    for path in document["paths"].values():
        for parameter in path.get("parameters", []):
            parameter["description"] = f"The {parameter['name'].removesuffix('_id')}'s id, a UUID of version 4."
        for operation in [part for part in path.values() if isinstance(part, dict)]:
            _examples_in_query(operation)
            common = {500} if operation.get("security") == [] else {401, 500}
            common |= {400, 408, 413, 415} if "requestBody" in operation else set()
            responses = operation["responses"]
            responses |= {str(s): {"$ref": f"#/components/responses/{HTTPStatus(s).name}"} for s in common}
            operation["responses"] = dict(sorted(responses.items()))
            for response in [r for r in responses.values() if "$ref" not in r]:
                response["headers"] = response.get("headers", {}) | _headers(200)
    return document


def _examples_in_query(operation: dict[str, Any]) -> None:
    """Let Swagger UI show an example of a filter without sending it: it sends an `example`, but no `examples`."""
    for parameter in operation.get("parameters", []):
        if "example" in parameter["schema"] and parameter["schema"]["type"] != "integer":
            parameter["schema"]["examples"] = [parameter["schema"].pop("example")]


def _error(status: int) -> dict[str, Any]:
    content = {"schema": {"$ref": "#/components/schemas/Error"}, "example": errors.example(status)}
    return {
        "description": errors.TEXTS[status][0],
        "content": {"application/json": content},
        "headers": _headers(status),
    }


def _headers(status: int) -> dict[str, Any]:
    names = ["X-Request-ID", *HEADERS_OF.get(status, [])]
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
