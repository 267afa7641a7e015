"""The one form that every error has."""

from typing import Any

import marshmallow as ma
from flask import current_app, request
from flask_smorest import Api
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, default_exceptions

MESSAGES = {
    400: "Send the request in well-formed HTTP.",
    404: "There is nothing at this path; see /docs for what there is.",
    405: "This path does not take this method; see the Allow header for those it takes.",
    413: "Send a body of at most 1 MiB.",
    500: "Something failed inside the service; its log has the cause under this response's X-Request-ID.",
}


class ErrorSchema(ma.Schema):
    """Every error has this form, whatever failed."""

    code = ma.fields.Integer(required=True, metadata={"description": "The HTTP status.", "example": 422})
    status = ma.fields.String(required=True, metadata={"description": "Its name.", "example": "Unprocessable Entity"})
    message = ma.fields.String(
        required=True,
        metadata={"description": "What to do about it, in one sentence.", "example": "Correct these fields: role."},
    )
    errors = ma.fields.Dict(
        keys=ma.fields.String(),
        metadata={
            "description": "What is wrong with each field, where there are some.",
            "example": {"role": ["Must be one of: ai, human."]},
        },
    )


class ServiceApi(Api):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest's Api with our error form: always a message, and the headers that the status asks for."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None

    def handle_http_exception(self, error: HTTPException) -> Any:
        """Turn an exception into the response's body, status and headers. A response inside it goes out as it is."""
        if error.response is not None:
            return error.response
        if isinstance(error, NotFound) and error is request.routing_exception:
            # strict_slashes=False leaves one thing out: a wrong method on a path without its trailing slash
            methods = current_app.url_map.bind("").allowed_methods(f"{request.path}/")
            error = MethodNotAllowed(methods) if methods else error
        code = error.code or 500
        data: dict[str, Any] = getattr(error, "data", None) or {}
        headers = dict(data.get("headers") or {})
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers["Allow"] = ", ".join(sorted(error.valid_methods))
        message = data.get("message") or MESSAGES.get(code) or f"{error.description}"
        return answer(code, message, headers, data.get("errors"))


def name(code: int) -> str:
    """Give the name of an HTTP error's status."""
    known = default_exceptions.get(code)
    return known().name if known else "Error"


def answer(
    code: int, message: str, headers: dict[str, str] | None = None, errors: Any = None
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Give an error's body, status and headers, as a view may return them."""
    body = {"code": code, "status": name(code), "message": message}
    return body | ({"errors": errors} if errors else {}), code, headers or {}
