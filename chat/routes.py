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
from chat.chunks import ModelError
from chat.client import Caller, PersistenceClient, PersistenceError, pieces
from chat.conversation import (
    Conversations,
    Delta,
    Event,
    Failed,
    Question,
    ReplyLostError,
    Stored,
    TooManyTurnsError,
    Turn,
)
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
    is_streamed: bool = turn_request["stream"]
    events = _first_events(turn) if is_streamed else _all_events(turn)
    last = events[-1] if events else None
    if isinstance(last, Failed):
        raise last.error
    if is_streamed:
        return Response(_stream(turn, events), mimetype=sse.MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})
    message, reply = (event.message for event in events if isinstance(event, Question | Stored))
    return Response(f'{{"message":{message},"reply":{reply}}}\n', mimetype="application/json")


def _first_events(turn: Turn) -> list[Event]:
    """Return what happens until the provider begins, the turn ends, or START_SECONDS are over."""
    end = time.monotonic() + START_SECONDS
    events: list[Event] = []
    while event := turn.next_event(max(0.0, end - time.monotonic())):
        events.append(event)
        if not isinstance(event, Question):
            break
    return events


def _all_events(turn: Turn) -> list[Event]:
    events: list[Event] = []
    while not (events and isinstance(events[-1], Stored | Failed)):
        if event := turn.next_event():
            events.append(event)
    return events


def _stream(turn: Turn, events: list[Event]) -> Iterator[bytes]:
    first: list[Event | None] = [event for event in events if event != Delta("")] or [None]
    try:
        for event in itertools.chain(first, iter(lambda: turn.next_event(PING_SECONDS), turn)):
            yield _encode(event)
            if isinstance(event, Stored | Failed):
                return
    except GeneratorExit:
        turn.is_abandoned = True
        raise


def _encode(event: Event | None) -> bytes:
    match event:
        case Question(message):
            return sse.encode("message", message)
        case Delta(content) if content:
            return sse.encode("delta", {"content": content})
        case Stored(message):
            return sse.encode("reply", message)
        case Failed(error):
            return sse.encode("error", answer_failure(error)[0])
    return sse.PING


def answer_failure(exc: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Return the error's body, status and headers for what can go wrong in a turn."""
    log.warning("The turn failed: %s (%s)", exc, exc.__cause__ or "no further cause")
    match exc:
        case TooManyTurnsError():
            return errors.answer(503, "Too many turns are under way; try again.", {"Retry-After": "2"})
        case ModelError():
            headers = {"Retry-After": exc.retry_after} if exc.retry_after else None
            return errors.answer(exc.status, exc.message, headers)
        case ReplyLostError(cause=cause):
            message = f"The reply could not be stored, so it is in errors.reply: {cause.message}"
            return errors.answer(cause.status, message, _headers(cause.status), {"reply": exc.text})
        case PersistenceError():
            return errors.answer(exc.status, exc.message, _headers(exc.status), exc.errors)
    return errors.answer(500)


def _headers(status: int) -> dict[str, str]:
    return {401: {"WWW-Authenticate": "ApiKey"}, 503: {"Retry-After": "2"}}.get(status, {})


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
    upstream = client.list_messages(_caller(), given | {"chat_id": chat_id})
    body = pieces(upstream)
    try:
        first = _beginning(body)
        if first.strip() == b"[]" and not ("after" in given and _exists(client, chat_id)):
            abort(404, message=NOT_FOUND)
    except BaseException:  # whatever it is, the connection must be given back
        upstream.close()
        raise
    response = Response(itertools.chain([first], body), mimetype="application/json")
    response.call_on_close(upstream.close)
    following = upstream.links.get("next", {}).get("url")
    if following:
        after = parse_qs(urlsplit(following).query)["after"][0]
        response.headers["Link"] = f'<{request.path}?{urlencode(given | {"after": after})}>; rel="next"'
    return response


def _exists(client: PersistenceClient, chat_id: str) -> bool:
    with client.list_messages(_caller(), {"chat_id": chat_id, "limit": "1"}) as page:
        return _beginning(pieces(page)).strip() != b"[]"


def _beginning(body: Iterator[bytes]) -> bytes:
    """Return as much of a list's JSON as tells whether it is empty."""
    beginning = b""
    while len(beginning.strip()) < 2 and (piece := next(body, b"")):
        beginning += piece
    return beginning


def _caller() -> Caller:
    return Caller(presented_key().decode("latin-1"), logs.request_id.get())
