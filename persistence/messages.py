"""/messages/: HTTP in, HTTP out."""

import json
import uuid
from typing import Any

from flask import Response, current_app, jsonify, request
from webargs.flaskparser import abort

from persistence import listing, schemas, store
from persistence.database import Database
from persistence.web import docs
from persistence.web.fields import MESSAGE, MESSAGE_ID, MessageSchema
from persistence.web.parsing import Blueprint, load_lines, no_query, read_body, reject_fields

blueprint = Blueprint("Messages", __name__, url_prefix="/messages", description="Store, rate and list messages.")

NOT_FOUND = "There is no message with this id."
NEW, IMPORTED = schemas.NewMessageSchema(), schemas.ImportedMessageSchema()
LINES = {
    "schema": {"type": "string", "description": "One message a line, as JSON, with its `message_id`."},
    "example": f"{json.dumps(MESSAGE)}\n",
}
NEW_MESSAGES = {
    "required": True,
    "description": "The message to store, or the messages to import.",
    "content": {
        listing.JSON: {"schema": NEW, "example": {name: MESSAGE[name] for name in ("chat_id", "content", "role")}},
        listing.NDJSON: LINES,
    },
}
LOCATION = docs.header("Location", "The message's own path.", f"/messages/{MESSAGE_ID}")
LINK = docs.link(f"/messages/?limit=50&after={MESSAGE_ID}")


@blueprint.route("/", methods=["POST"])
@blueprint.doc(requestBody=NEW_MESSAGES)
@blueprint.response(201, MessageSchema, description="Stored.", headers=LOCATION, example=MESSAGE)
@blueprint.alt_response(
    200,
    schema={"anyOf": [MessageSchema, schemas.ImportSchema]},
    description="Stored already, and this is it; or imported.",
    headers=LOCATION,
    example=MESSAGE,
)
@blueprint.errors(409)
def create_message() -> Response:
    """Store a message, or import many

    Choose the `message_id` yourself, and you can send the request again after a lost connection or a 503: the message
    is stored once, and a repeat answers 200 with it.

    With `Content-Type: application/x-ndjson`, imports one message a line, as the export has them, all or none. Those
    that are there already, and are the same, are left alone, so that a repeat is safe.
    """
    if request.mimetype == listing.NDJSON:
        return _import(load_lines(read_body(listing.NDJSON), IMPORTED))
    database: Database = current_app.extensions["database"]
    message: dict[str, Any] = {"rating": None, "sent_at": None} | blueprint.ARGUMENTS_PARSER.parse(NEW)
    message_id = message["message_id"] = message.get("message_id") or str(uuid.uuid4())
    while (stored := store.insert_message(database, message)) is None:
        found = store.select_stored_message(database, message)
        if found is not None:  # else it was deleted between the two
            stored, is_same = found
            return _message(stored, 200, message_id) if is_same else abort(409)
    return _message(stored, 201, message_id)


def _import(messages: list[dict[str, Any]]) -> Response:
    no_query()
    stored, taken = store.import_messages(current_app.extensions["database"], messages)
    if taken:
        errors = {str(number): ["Its message_id is taken by another message."] for number in taken}
        abort(409, message="Nothing is imported: some message_ids are taken by other messages.", errors=errors)
    return jsonify(stored=stored, already_there=len(messages) - stored)


@blueprint.route("/", methods=["GET"])
@blueprint.arguments(schemas.MessagesQuerySchema(), location="query")
@blueprint.response(200, MessageSchema(many=True), description="The messages.", headers=LINK, example=[MESSAGE])
@blueprint.alt_response(200, description="The messages.", content_type=listing.NDJSON, **LINES)
def list_messages(query: dict[str, Any]) -> Response:
    """List messages

    In the order in which they were stored. With a `limit`, a page: follow the `Link` header for more. Without, all of
    them, streamed; a connection that ends without a proper end means that something broke, and `after` goes on from the
    last message that arrived. With `Accept: application/x-ndjson`, one message a line.
    """
    database: Database = current_app.extensions["database"]
    media = listing.media_type()
    selection = _selection(database, query)
    if "limit" not in query:
        return listing.stream(store.copy_messages(database, selection), media)
    page = store.select_messages(database, selection, query["limit"], listing.SEPARATORS[media])
    if page.seqs is None:
        response = listing.page(page.text, media)
    else:  # the same messages as in the page, whatever others have stored since
        chosen = store.Selection(("seqs",), {"seqs": page.seqs}, selection.descending)
        response = listing.stream(store.copy_messages(database, chosen), media)
    if page.has_more:
        response.headers["Link"] = listing.link_next(request.args.to_dict() | {"after": str(page.last_id)})
    return response


def _selection(database: Database, query: dict[str, Any]) -> store.Selection:
    values = {name: query[name] for name in query if name not in ("order", "limit")}
    descending = query.get("order") == "desc"
    names = {"after": "before"} if descending else {}  # of the filters, where they differ from the parameters
    if "after" in values:
        values["after"] = store.select_message_seq(database, query["after"])
        if values["after"] is None:
            reject_fields({"after": [NOT_FOUND]})
    if values.get("rating") == "null":
        names["rating"] = "unrated"
    elif "rating" in values:
        values["rating"] = values["rating"] == "true"
    return store.Selection(tuple(names.get(name, name) for name in values), values, descending)


@blueprint.route("/<uuid4:message_id>", methods=["GET"])
@blueprint.response(200, MessageSchema, description="The message.", example=MESSAGE)
def read_message(message_id: str) -> Response:
    """Read a message"""
    no_query()
    stored = store.select_message(current_app.extensions["database"], message_id)
    return _message(stored) if stored else abort(404, message=NOT_FOUND)


@blueprint.route("/<uuid4:message_id>", methods=["PUT"])
@blueprint.arguments(schemas.MessageChangesSchema(), description="What to change.", example={"rating": True})
@blueprint.response(200, MessageSchema, description="The message as it is now.", example=MESSAGE | {"rating": True})
def update_message(changes: dict[str, Any], message_id: str) -> Response:
    """Change or rate a message

    Changes `content`, `rating` or both; what is not sent stays. The other fields may be sent too, with the values they
    have, so that a message can be read, edited and put back whole.
    """
    database: Database = current_app.extensions["database"]
    if changes.get("message_id", message_id) != message_id:
        reject_fields({"message_id": ["Must be the one in the path."]})
    if not changes.keys() & {"content", "rating"}:
        reject_fields({name: ["Send content, rating or both."] for name in ("content", "rating")})
    stored = store.update_message(database, message_id, changes)
    if stored is None:
        differences = store.select_differences(database, message_id, changes)
        if not differences:
            abort(404, message=NOT_FOUND)
        reject_fields({name: ["Can't be changed; leave it out, or send it as it is."] for name in differences})
    return _message(stored)


@blueprint.route("/<uuid4:message_id>", methods=["DELETE"])
@blueprint.response(204, description="It is deleted.")
def delete_message(message_id: str) -> Response:
    """Delete a message

    A repeat after a 503 answers 404 if the first sending has deleted it.
    """
    no_query()
    if not store.delete_message(current_app.extensions["database"], message_id):
        abort(404, message=NOT_FOUND)
    return listing.no_content()


def _message(text: str, status: int = 200, location: str | None = None) -> Response:
    headers = {"Location": f"/messages/{location}"} if location else None
    return Response(f"{text}\n", status, headers, mimetype=listing.JSON)
