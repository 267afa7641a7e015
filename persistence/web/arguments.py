"""A request's body and query, read strictly: one reading for each, or a clear error."""

import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn

import flask_smorest
import marshmallow as ma
from flask import Flask, Request, request
from gunicorn.http.errors import ParseException
from webargs.flaskparser import FlaskParser, abort

MAX_BODY_BYTES = 1024 * 1024
MAX_NAMES, MAX_NAME_LENGTH = 20, 100  # of those that an error repeats: the caller chose how many, and how long


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


# RFC 8259 has no NaN, and leaves open what a name given twice means
_decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def _is_json(req: Request) -> bool:
    charset = req.mimetype_params.get("charset", "utf-8").lower()
    return req.mimetype == "application/json" and charset in ("utf-8", "utf8")


class StrictParser(FlaskParser):
    """webargs' parser with the contract's order of checks: size (413), content type (415), JSON (400), fields (422)."""

    DEFAULT_UNKNOWN_BY_LOCATION = {"json": ma.RAISE, "query": ma.RAISE}  # noqa: RUF012  # as webargs declares it

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """Give what the body's JSON says. Aborts with 413, 415 or 400."""
        try:
            body: bytes = req.environ["wsgi.input"].read()  # MAX_BODY_BYTES at most, as the server sees to
        except (ParseException, OSError):
            abort(400, message="Send the whole body, in well-formed chunks where it is chunked.")
        if (req.content_type != "application/json" and not _is_json(req)) or "HTTP_CONTENT_ENCODING" in req.environ:
            abort(415, message="Send the body as plain JSON in UTF-8, with the header Content-Type: application/json.")
        try:
            document = _decoder.decode(body.decode())
        except json.JSONDecodeError as exc:
            abort(
                400, message=f"Send a body of valid JSON in UTF-8 (it breaks at line {exc.lineno}, column {exc.colno})."
            )
        except (ValueError, RecursionError):  # no UTF-8, a number of too many digits, a name given twice, deep nesting
            abort(400, message="Send a body of valid JSON in UTF-8, with each name once in an object.")
        if not isinstance(document, dict):
            abort(422, message="Send a JSON object.")
        return document

    def load_querystring(self, req: Request, schema: ma.Schema) -> Any:
        """Give the query's parameters by name, each at most once."""
        repeated = [name for name, values in req.args.lists() if len(values) > 1]
        if repeated:
            raise ma.ValidationError({name: ["Given more than once."] for name in repeated})
        return req.args.to_dict()

    def _on_validation_error(self, error: ma.ValidationError, *args: Any, **kwargs: Any) -> NoReturn:
        reject_fields(error.normalized_messages())  # type: ignore[no-untyped-call]  # of marshmallow's own


def init_app(app: Flask) -> None:
    """Answer 413 to a body over MAX_BODY_BYTES before any of it is read."""
    app.ensure_sync = lambda func: func  # type: ignore[method-assign]  # none is a coroutine; Flask looks each time

    @app.before_request
    def check_size() -> None:
        sock = request.environ.get("gunicorn.socket")
        if getattr(sock, "too_large", False) and request.routing_exception is None:
            abort(413)


def reject_fields(errors: dict[str, Any]) -> NoReturn:
    """Abort with 422 and one sentence that names the fields; `errors` says what is wrong with each."""
    shown = {name[:MAX_NAME_LENGTH]: errors[name] for name in list(errors)[:MAX_NAMES]}
    abort(422, message=f"Correct and send again: {', '.join(shown)}.", errors=shown)


def no_query(view: Callable[..., Any]) -> Callable[..., Any]:
    """Answer 422 to a query, for a view that takes none."""

    @functools.wraps(view)
    def strict(*args: Any, **kwargs: Any) -> Any:
        if request.query_string:
            reject_fields({name: ["Unknown field."] for name in request.args} or {"query": ["There is none here."]})
        return view(*args, **kwargs)

    return strict


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest's blueprint with the strict parser."""

    ARGUMENTS_PARSER = StrictParser()
