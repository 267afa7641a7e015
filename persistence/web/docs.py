"""Swagger UI on /docs, from the files of the package flask-swagger-ui, and /openapi.json beside it."""

from collections.abc import Callable
from copy import deepcopy
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
        "description": "The caller's own X-Request-ID, else a fresh UUID; it stands on every log line of the request.",
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
EXAMPLES = {
    400: "Send a body of valid JSON in UTF-8 (it breaks at line 1, column 12).",
    401: f"Send a valid key in the {HEADER} header.",
    415: "Send the body as plain JSON in UTF-8, with the header Content-Type: application/json.",
    422: "Correct and send again: role.",
}
DESCRIPTIONS = {
    400: "The body is no JSON.",
    401: f"No valid key in the {HEADER} header.",
    413: "The body is over 1 MiB.",
    415: "The body is of another content type than application/json.",
    422: "A field or parameter is wrong, unknown or missing; `errors` says which.",
    500: "A failure inside; the service's log has the cause under the request's id.",
    503: "It passes by itself: try again after `Retry-After` seconds.",
}


def fails(failures: dict[int, tuple[str, str]]) -> Callable[[Any], Any]:
    """Document a view's errors, by status: when it comes, and a message as an example; and give the operation its id.

    Written beside what flask-smorest's decorators note, since each of those costs every request a call.
    """

    def decorate(view: Any) -> Any:
        notes = view._apidoc = deepcopy(getattr(view, "_apidoc", {}))
        first, *rest = view.__name__.split("_")
        manual = notes.setdefault("manual_doc", {})
        manual["operationId"] = first + "".join(word.capitalize() for word in rest)
        manual["responses"] = {str(status): _error(status, *texts) for status, texts in failures.items()}
        return view

    return decorate


def configure(app: Flask, title: str, version: str, description: str) -> ServiceApi:
    """Make the app's flask-smorest Api, which writes its OpenAPI document."""
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
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's own provider
    return ServiceApi(app)


def init_app(app: Flask, api: ServiceApi) -> None:
    """Serve the page, its files, and the document, which is finished and written out once, at the first request."""
    api.spec.components.security_scheme(
        "ApiKey", {"type": "apiKey", "in": "header", "name": HEADER, "description": "A key that the operator gave you."}
    )
    document: list[str] = []

    @app.get("/openapi.json", strict_slashes=False)
    def openapi() -> Response:
        if not document:
            document.append(json.dumps(_finish(api.spec.to_dict()), indent=2, sort_keys=False))
        return Response(document[0], mimetype="application/json")

    @app.get("/docs", strict_slashes=False)
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
    document["components"]["headers"] = HEADERS
    del document["components"]["schemas"]["PaginationMetadata"]  # flask-smorest's, which nothing here has
    for path in document["paths"].values():
        for parameter in path.get("parameters", []):
            parameter["description"] = f"The {parameter['name'].removesuffix('_id')}'s id, a UUID of version 4."
        for operation in path.values():
            if not isinstance(operation, dict):
                continue
            for parameter in operation.get("parameters", []):
                schema = parameter["schema"]
                # Swagger UI would send an `example` as it is: right for a limit, wrong for a filter
                if "example" in schema and schema["type"] != "integer":
                    schema["examples"] = [schema.pop("example")]
            responses = operation["responses"]
            common = {500} if operation.get("security") == [] else {401, 500}
            if "requestBody" in operation:
                common |= {400, 413, 415}
            for status in sorted(common - {int(code) for code in responses}):
                responses[str(status)] = _error(
                    status, DESCRIPTIONS[status], EXAMPLES.get(status) or errors.MESSAGES[status]
                )
            operation["responses"] = dict(sorted(responses.items()))
            for status, response in operation["responses"].items():
                names = ["X-Request-ID"]
                names += ["WWW-Authenticate"] if status == "401" else []
                names += ["Retry-After"] if status == "503" else []
                references = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
                response["headers"] = response.get("headers", {}) | references
    return document


def _error(status: int, description: str, message: str) -> dict[str, Any]:
    example = {"code": status, "status": errors.name(status), "message": message}
    if status == 422:
        example["errors"] = {"role": ["Must be one of: ai, human."]}
    content = {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}
    return {"description": description, "content": {"application/json": content}}
