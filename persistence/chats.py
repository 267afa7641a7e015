"""/chats/: HTTP in, HTTP out."""

from typing import Any

from flask import Response, current_app
from webargs.flaskparser import abort

from persistence import listing, store
from persistence.database import Database
from persistence.schemas import ChatSchema, ChatsQuerySchema
from persistence.web import docs
from persistence.web.fields import CHAT_ID, MESSAGE
from persistence.web.parsing import Blueprint, no_query, reject_fields

blueprint = Blueprint("Chats", __name__, url_prefix="/chats", description="List and delete chats.")

NOT_FOUND = "There is no chat with this id."
CHAT = {
    "chat_id": CHAT_ID,
    "message_count": 2,
    "first_sent_at": MESSAGE["sent_at"],
    "last_sent_at": MESSAGE["sent_at"],
    "title": MESSAGE["content"],
}
LINK = docs.link(f"/chats/?limit=50&after={CHAT_ID}")


@blueprint.route("/", methods=["GET"])
@blueprint.arguments(ChatsQuerySchema(), location="query")
@blueprint.response(200, ChatSchema(many=True), description="The chats.", headers=LINK, example=[CHAT])
def list_chats(query: dict[str, Any]) -> Response:
    """List chats

    The one with the message stored last comes first. Follow the `Link` header for more; a chat that gets a message
    meanwhile moves to the front.
    """
    database: Database = current_app.extensions["database"]
    before = store.select_chat_seq(database, query["after"]) if "after" in query else store.LAST_SEQ
    if before is None:
        reject_fields({"after": [NOT_FOUND]})
    text, last_id = store.select_chats(database, before, query["limit"])
    response = Response(f"{text}\n", mimetype=listing.JSON)
    if last_id is not None:
        response.headers["Link"] = listing.link_next({"limit": str(query["limit"]), "after": last_id})
    return response


@blueprint.route("/<uuid4:chat_id>", methods=["DELETE"])
@blueprint.response(204, description="Its messages are deleted.")
def delete_chat(chat_id: str) -> Response:
    """Delete a chat

    Deletes all its messages. A repeat after a 503 answers 404 if the first sending has deleted them.
    """
    no_query()
    if not store.delete_chat(current_app.extensions["database"], chat_id):
        abort(404, message=NOT_FOUND)
    return listing.no_content()
