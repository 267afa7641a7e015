"""The one form that every error has."""

from typing import Any

import marshmallow as ma
from flask_smorest import Api
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.http import HTTP_STATUS_CODES

# what is wrong and what to do about it, if nothing more exact is known: for the caller and for the documentation
MESSAGES = {
    400: "Send a whole, well-formed request, with a body of valid JSON in UTF-8.",
    401: "Send a valid key in the x-api-key header.",
    404: "There is nothing at this path; see /docs for what there is.",
    405: "This path does not take this method; see the Allow header for those it takes.",
    408: "The body did not come in time; send it whole and without pauses.",
    409: "Choose another message_id: this one is taken by another message.",
    413: "Send a body of at most 1 MiB.",
    415: "Send the body as plain JSON in UTF-8, with the header Content-Type: application/json.",
    422: "A field or parameter is wrong, unknown or missing; errors says which.",
    500: "Something failed inside the service; its log has the cause under this response's X-Request-ID.",
    502: "The model's provider failed; try again.",
    503: "Something is away for now; try again after Retry-After seconds.",
    504: "The model's provider did not answer in time; try again.",
}


class ErrorSchema(ma.Schema):
    """Every error has this form, whatever failed."""

    code = ma.fields.Integer(required=True, metadata={"description": "The HTTP status."})
    status = ma.fields.String(required=True, metadata={"description": "Its name."})
    message = ma.fields.String(required=True, metadata={"description": "What to do about it, in one sentence."})
    errors = ma.fields.Dict(
        keys=ma.fields.String(), metadata={"description": "What is wrong with each field, if fields are wrong."}
    )


class ServiceApi(Api):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest's Api with our error form: always a message, and the headers that the status asks for."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None

    def handle_http_exception(self, error: HTTPException) -> Any:
        """Return the exception as body, status and headers."""
        data: dict[str, Any] = getattr(error, "data", {})
        headers = dict(data.get("headers", {}))
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers["Allow"] = ", ".join(sorted(error.valid_methods))
        code = error.code or 500
        message = data.get("message") or MESSAGES.get(code, f"{error.description}")
        return answer(code, message, headers, data.get("errors"))


def answer(
    code: int, message: str | None = None, headers: dict[str, str] | None = None, errors: Any = None
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return an error's body, status and headers, as a view may return them."""
    body = {"code": code, "status": HTTP_STATUS_CODES.get(code, "Error"), "message": message or MESSAGES[code]}
    return body | ({"errors": errors} if errors else {}), code, headers or {}
