"""The one form that every error has."""

from typing import Any

import marshmallow as ma
from flask import current_app, request
from flask_smorest import Api
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, default_exceptions

# what each status means, for the documentation, and what to do about it, for the caller
TEXTS = {
    400: ("The body is not JSON.", "Send a whole, well-formed request, with a body of valid JSON in UTF-8."),
    401: ("No valid key in the x-api-key header.", "Send a valid key in the x-api-key header."),
    404: ("There is none with this id.", "There is nothing at this path; see /docs for what there is."),
    405: ("", "This path does not take this method; see the Allow header for those it takes."),
    408: ("The body did not come in time.", "Send the whole body in time."),
    409: ("The id is taken.", "Choose another message_id: this one is taken by another message."),
    413: ("The body is over 1 MiB.", "Send a body of at most 1 MiB."),
    415: (
        "The body is of another content type.",
        "Send the body as plain JSON in UTF-8, with the header Content-Type: application/json.",
    ),
    422: ("A field or parameter is wrong, unknown or missing; `errors` says which.", "Invalid fields: role."),
    500: (
        "A failure inside; the service's log has the cause under the request's id.",
        "Something failed inside the service; its log has the cause under this response's X-Request-ID.",
    ),
    502: ("The model gave no reply; `message` says why.", "The model's provider failed; try again."),
    503: ("It passes by itself: try again after `Retry-After` seconds.", "Something is away for now; try again soon."),
    504: ("The model gave no reply in time.", "The model's provider did not answer in time; try again."),
}


class ErrorSchema(ma.Schema):
    """Every error has this form, whatever failed."""

    code = ma.fields.Integer(required=True, metadata={"description": "The HTTP status.", "example": 422})
    status = ma.fields.String(required=True, metadata={"description": "Its name.", "example": "Unprocessable Entity"})
    message = ma.fields.String(
        required=True, metadata={"description": "What to do about it, in one sentence.", "example": TEXTS[422][1]}
    )
    errors = ma.fields.Dict(
        keys=ma.fields.String(),
        metadata={
            "description": "What is wrong with each field, if fields are wrong.",
            "example": {"role": ["Must be one of: ai, human."]},
        },
    )


class ServiceApi(Api):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest's Api with our error form: always a message, and the headers that the status asks for."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None

    def handle_http_exception(self, error: HTTPException) -> Any:
        """Return the exception as body, status and headers. A response inside it is returned as it is."""
        if error.response is not None:
            return error.response
        if isinstance(error, NotFound) and error is request.routing_exception:
            # strict_slashes=False leaves one case out: a wrong method on a path without its trailing slash
            methods = current_app.url_map.bind("").allowed_methods(f"{request.path}/")
            error = MethodNotAllowed(methods) if methods else error
        code = error.code or 500
        data: dict[str, Any] = getattr(error, "data", None) or {}
        headers = dict(data.get("headers") or {})
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            headers["Allow"] = ", ".join(sorted(error.valid_methods))
        message = data.get("message") or TEXTS.get(code, ("", f"{error.description}"))[1]
        return answer(code, message, headers, data.get("errors"))


def example(code: int) -> dict[str, Any]:
    """Return the body of an error as an example."""
    fields = {"role": ["Must be one of: ai, human."]} if code == 422 else None
    return answer(code, TEXTS[code][1], errors=fields)[0]


def answer(
    code: int, message: str, headers: dict[str, str] | None = None, errors: Any = None
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return an error's body, status and headers, as a view may return them."""
    known = default_exceptions.get(code)
    body = {"code": code, "status": known().name if known else "Error", "message": message}
    return body | ({"errors": errors} if errors else {}), code, headers or {}
