"""How a request's body and query are read: strictly, one reading for each or a clear error."""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn

import flask
import flask_smorest
import marshmallow as ma
from flask import Flask, Request, current_app, request
from flask.json.provider import DefaultJSONProvider
from webargs.flaskparser import FlaskParser, abort

MAX_BODY_BYTES = 1024 * 1024
MAX_NAMES, MAX_NAME_LENGTH = 20, 100  # of those that an error repeats: the caller chose how many, and how long


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class StrictJson(DefaultJSONProvider):
    """Flask's JSON in UTF-8 only, without NaN, and with each name once in an object (RFC 8259, sections 4, 6, 8.1)."""

    sort_keys = False
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Return the value that the text holds. Raises ValueError."""
        try:
            return self.decoder.decode(s.decode() if isinstance(s, bytes) else s)
        except RecursionError:
            raise ValueError("the JSON is nested too deeply") from None


class StrictParser(FlaskParser):
    """webargs' parser with the contract's order of checks: size (413), content type (415), JSON (400), fields (422)."""

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """Return the body's JSON object. Aborts with 413, 415, 400 or 422."""
        read_body("application/json")
        document = req.get_json()
        if not isinstance(document, dict):
            abort(422, message="Send a JSON object.")
        no_query()
        return document

    def load_querystring(self, req: Request, schema: ma.Schema) -> Any:
        """Return the query's parameters by name, each at most once."""
        repeated = [name for name, values in req.args.lists() if len(values) > 1]
        if repeated:
            raise ma.ValidationError({name: ["Given more than once."] for name in repeated})
        return req.args.to_dict()

    def _on_validation_error(self, error: ma.ValidationError, *args: Any, **kwargs: Any) -> NoReturn:
        reject_fields(_messages(error))


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest's blueprint with the strict parser."""

    ARGUMENTS_PARSER = StrictParser(unknown=ma.RAISE)

    def add_url_rule(self, rule: str, endpoint: str | None = None, view_func: Any = None, **options: Any) -> None:
        """Add a view, and name its operation after it.

        A path that ends in a slash is added without it too: werkzeug's strict_slashes=False would find it, but not
        which methods it takes.
        """
        first, *rest = view_func.__name__.split("_")
        view = self.doc(operationId=first + "".join(word.capitalize() for word in rest))(view_func)
        super().add_url_rule(rule, endpoint, view, **options)
        if rule == "/":
            flask.Blueprint.add_url_rule(self, "", view.__name__, view, methods=options["methods"])

    def errors(self, *statuses: int) -> Callable[[Any], Any]:
        """Document the errors of a view beside those that any can give."""
        responses: Callable[[Any], Any] = self.doc(responses={status: HTTPStatus(status).name for status in statuses})
        return responses


def init_app(app: Flask) -> None:
    """Limit the size of bodies, read JSON strictly, and find paths with or without a slash at the end."""
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 1  # of a chunked body, werkzeug silently drops what is beyond
    app.json = StrictJson(app)
    app.url_map.strict_slashes = app.url_map.merge_slashes = False  # neither redirects


def read_body(media_type: str) -> bytes:
    """Return the body, which is of this media type in UTF-8. Aborts with 413, 400 or 415."""
    body = request.get_data()
    if len(body) > MAX_BODY_BYTES:
        abort(413)
    if request.content_length not in (None, len(body)):
        abort(400, message="Send the whole body.")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != media_type or charset not in ("utf-8", "utf8") or request.content_encoding:
        abort(415)
    return body


def load_lines(body: bytes, schema: ma.Schema) -> list[dict[str, Any]]:
    """Return what `schema` loads from each line of NDJSON. Aborts with 422, whose `errors` names the lines."""
    loaded: list[dict[str, Any]] = []
    errors: dict[str, Any] = {}
    for number, line in enumerate(body.removesuffix(b"\n").split(b"\n"), 1):
        try:
            loaded.append(schema.load(current_app.json.loads(line)))
        except ma.ValidationError as exc:
            errors[str(number)] = _messages(exc)
        except ValueError:
            errors[str(number)] = ["Not a JSON object."]
        time.sleep(0)  # others are served meanwhile
    if errors:
        reject_fields(errors, "lines")
    return loaded


def _messages(error: ma.ValidationError) -> dict[str, Any]:
    """Return what is wrong with each field."""
    error.__traceback__ = None  # marshmallow's own frame holds the error, and so the body, until a garbage collection
    messages: dict[str, Any] = error.normalized_messages()  # type: ignore[no-untyped-call]  # of marshmallow's own
    return messages


def reject_fields(errors: dict[str, Any], what: str = "fields") -> NoReturn:
    """Abort with 422 and one sentence that names the fields, or the lines; `errors` says what is wrong with each."""
    shown = {str(name)[:MAX_NAME_LENGTH]: errors[name] for name in list(errors)[:MAX_NAMES]}
    names = ", ".join(name if name.isprintable() else repr(name) for name in shown)
    abort(422, message=f"Invalid {what}: {names}.", errors=shown)


def no_query() -> None:
    """Abort with 422 if there is a query, where none is taken."""
    if request.query_string:
        reject_fields({name: ["Unknown field."] for name in request.args} or {"query": ["Must be empty."]})
