"""/chat: HTTP in, HTTP out."""

import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from flask import Response, current_app, request
from webargs.flaskparser import abort

from chat import sse
from chat.client import Caller, PersistenceClient, pieces
from chat.conversation import Conversations, Event, Turn
from chat.errors import TurnError
from chat.schemas import EVENT, EVENTS, REPLY, AnswerSchema, TurnSchema
from persistence.web import docs, errors, logs
from persistence.web.auth import presented_key
from persistence.web.fields import MESSAGE, MessageSchema, PageSchema
from persistence.web.parsing import Blueprint

START_SECONDS = 10.0  # what fails within them has its plain status
PING_SECONDS = 10.0  # the contract: no more than 15 without a byte
NOT_FOUND = "There is no chat with this id."
LINK = docs.link(f"/chat/{MESSAGE['chat_id']}?limit=50&after={MESSAGE['message_id']}")

log = logging.getLogger(__name__)
blueprint = Blueprint("Chat", __name__, url_prefix="/chat", description="Talk to the model; both sides are kept.")


@blueprint.route("", methods=["POST"])
@blueprint.arguments(TurnSchema(), description="What to say, and where.", example={"content": MESSAGE["content"]})
@blueprint.response(
    200,
    AnswerSchema,
    description="Both sides, as they are stored. Go on with the `chat_id`; rate the reply by its `message_id`.",
    example={"message": MESSAGE, "reply": REPLY},
)
@blueprint.alt_response(
    200,
    schema=EVENT,
    description="Both sides, as they are stored. Go on with the `chat_id`; rate the reply by its `message_id`.",
    content_type=sse.MEDIA_TYPE,
    example=EVENTS,
)
@blueprint.errors(409, 422, 502, 503, 504)
def take_turn(turn_request: dict[str, Any]) -> Response:
    """Say something to the model

    Stores your message, gives the model what the chat held before, stores its reply, and answers with both. Without a
    `chat_id`, it begins a new chat. With `"stream": true`, the reply comes as server-sent events: `message` with your
    message as it is stored, a `delta` for each piece as it comes, and last `reply` with the stored reply, or `error`.

    Choose the `message_id` yourself, and you can send the request again after any failure, or while the first one is at
    work: there will be one message, one reply and one call to the model. A reply is finished and stored even if you
    hang up.
    """
    conversations: Conversations = current_app.extensions["conversations"]
    turn = conversations.begin(_caller(), turn_request)
    logs.more_fields.set(turn.log_fields)
    return _streamed(turn) if turn_request["stream"] else _whole(turn)


def _whole(turn: Turn) -> Response:
    stored: dict[str, str] = {}
    while "reply" not in stored:
        if event := _next(turn):
            stored[event.name] = event.data
    return Response(f'{{"message":{stored["message"]},"reply":{stored["reply"]}}}\n', mimetype="application/json")


def _streamed(turn: Turn) -> Response:
    """Return the stream when the provider begins, the turn ends, or START_SECONDS are over."""
    end = time.monotonic() + START_SECONDS
    events: list[Event | None] = []
    while event := _next(turn, max(0.0, end - time.monotonic())):
        events.append(event)
        if event.name != "message":
            break
    response = Response(_body(turn, events), mimetype=sse.MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})
    response.call_on_close(turn.abandon)
    return response


def _next(turn: Turn, seconds: float | None = None) -> Event | None:
    event = turn.next_event(seconds)
    if event and event.name == "error":
        raise event.data
    return event


def _body(turn: Turn, events: list[Event | None]) -> Iterator[bytes]:
    for event in itertools.chain(events or [None], map(turn.next_event, itertools.repeat(PING_SECONDS))):
        if event is None:
            yield sse.PING
        elif event.name == "error":
            yield sse.encode("error", answer_failure(event.data)[0])
            return
        elif event.name != "delta":
            yield sse.encode(event.name, event.data)
            if event.name == "reply":
                return
        elif event.data:
            yield sse.encode("delta", {"content": event.data})


def answer_failure(exc: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the error's body, status and headers for what can go wrong in a turn."""
    log.warning("The request failed: %s (%s)", exc, exc.__cause__ or "no further cause")
    part: BaseException | None = exc
    while part:  # frames hold the event that holds the error, and so what was sent, until a garbage collection
        part.__traceback__, part = None, part.__context__
    if isinstance(exc, TurnError):
        return errors.answer(exc.status, exc.message, exc.headers, exc.errors)
    return errors.answer(500)


@blueprint.route("/<uuid4:chat_id>", methods=["GET"])
@blueprint.arguments(PageSchema(), location="query")
@blueprint.response(200, MessageSchema(many=True), description="The messages.", example=[MESSAGE, REPLY], headers=LINK)
@blueprint.errors(404, 422, 502, 503)
def read_chat(query: dict[str, Any], chat_id: str) -> Response:
    """Read a chat

    Its messages in the order in which they were stored. With a `limit`, a page: follow the `Link` header for more.
    """
    client: PersistenceClient = current_app.extensions["client"]
    given = {name: str(value) for name, value in query.items()}
    with client.list_messages(_caller(), {"chat_id": chat_id, "limit": "1"}) as first:
        if b"".join(pieces(first)).strip() == b"[]":
            abort(404, message=NOT_FOUND)
    upstream = client.list_messages(_caller(), given | {"chat_id": chat_id})
    response = Response(pieces(upstream), mimetype="application/json")
    response.call_on_close(upstream.close)
    following = upstream.links.get("next", {}).get("url")
    if following:
        after = parse_qs(urlsplit(following).query)["after"][0]
        response.headers["Link"] = f'<{request.path}?{urlencode(given | {"after": after})}>; rel="next"'
    return response


def _caller() -> Caller:
    return Caller(presented_key().decode("latin-1"), logs.request_id.get())
