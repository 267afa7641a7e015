"""/turns/: HTTP in, HTTP out."""

from typing import Any

from flask import Response, current_app, jsonify

from persistence import listing, store
from persistence.schemas import WORKER_ID, TurnsSchema, WorkerSchema
from persistence.web.fields import MESSAGE_ID
from persistence.web.parsing import Blueprint

blueprint = Blueprint(
    "Turns", __name__, url_prefix="/turns", description="For the chat service: who is at work on which turn."
)
TURNS = {"worker_id": WORKER_ID, "message_ids": [MESSAGE_ID]}


@blueprint.route("/", methods=["PUT"])
@blueprint.arguments(TurnsSchema(), description="The turns to take or to renew.", example=TURNS)
@blueprint.response(200, TurnsSchema, description="Those that are this worker's now.", example=TURNS)
def take_turns(turns: dict[str, Any]) -> Response:
    """Take or renew turns

    Marks these turns as at work at this worker, and answers with those that are. A turn that another worker has taken
    or renewed in the last 20 seconds stays with that one.
    """
    taken = store.take_turns(current_app.extensions["database"], **turns)
    return jsonify(worker_id=turns["worker_id"], message_ids=taken)


@blueprint.route("/<uuid4:message_id>", methods=["DELETE"])
@blueprint.arguments(WorkerSchema(), location="query")
@blueprint.response(204, description="It is not at work at this worker.")
def give_back_turn(query: dict[str, Any], message_id: str) -> Response:
    """Release a turn

    Takes this worker's mark off a turn, so that others can take it at once.
    """
    store.give_back_turn(current_app.extensions["database"], query["worker_id"], message_id)
    return listing.no_content()
