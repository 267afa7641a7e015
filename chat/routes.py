"""/chat: HTTP in, HTTP out."""

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from flask import Response, current_app, request
from flask.typing import ResponseReturnValue
from webargs.flaskparser import abort

from chat import sse
from chat.client import Caller, PersistenceClient, PersistenceError, pieces
from chat.conversation import Conversations, Delta, ReplyLostError, Turn
from chat.model import ModelError
from chat.schemas import QUESTION, REPLY, AnswerSchema, ChatQuerySchema, MessageSchema, TurnSchema
from persistence.web import errors, logs
from persistence.web.arguments import Blueprint, no_query
from persistence.web.auth import presented_key
from persistence.web.docs import fails
from persistence.web.response import JsonResponse

log = logging.getLogger(__name__)

blueprint = Blueprint("Chat", __name__, url_prefix="/chat", description="Talk to the model; both sides are kept.")

NOT_FOUND = "There is no chat with this id."
INVALID = ("A field or parameter is wrong, unknown or missing.", "Correct and send again: content.")
AWAY = "The persistence service is away; try again soon."
EVENTS = """\
event: message
data: {"message_id":"0b0d2f6e-…","chat_id":"7c9e6679-…","content":"What is the capital of France?",…}

event: delta
data: {"content":"Par"}

event: delta
data: {"content":"is."}

event: reply
data: {"message_id":"4d1f3c0a-…","chat_id":"7c9e6679-…","content":"Paris.",…}

"""


@blueprint.route("", methods=["POST"], strict_slashes=False)
@blueprint.arguments(TurnSchema(), example={"content": QUESTION["content"]})
@blueprint.response(
    200,
    AnswerSchema,
    description="Both sides, as they are stored. Go on with the `chat_id`; rate the reply by its `message_id`.",
    example={"message": QUESTION, "reply": REPLY},
)
@blueprint.alt_response(
    200,
    schema={
        "type": "object",
        "description": "One event: first `message`, then a `delta` for each piece, last `reply` or `error`.",
        "properties": {
            "event": {"type": "string", "enum": ["message", "delta", "reply", "error"], "description": "What it is."},
            "data": {"type": "string", "description": "A message, the piece, or an error, as JSON on one line."},
        },
        "required": ["event", "data"],
    },
    description="Both sides, as they are stored. Go on with the `chat_id`; rate the reply by its `message_id`.",
    content_type=sse.MEDIA_TYPE,
    example=EVENTS,
    success=True,
)
@fails(
    {
        409: ("This `message_id` is taken by another message.", "Choose another message_id: this one is taken."),
        422: INVALID,
        502: ("The model gave no reply; the message says why.", "The model's provider rejects the service's key."),
        503: ("It passes by itself: try again after `Retry-After` seconds.", AWAY),
        504: (
            "The model's provider did not answer in time.",
            "The model's provider did not answer in time; try again.",
        ),
    },
)
@no_query
def take_turn(turn_request: dict[str, Any]) -> Response:
    """Say something to the model

    Stores your message, gives the model what the chat held before, stores its reply, and answers with both. Without a
    `chat_id`, it begins a new chat. With `"stream": true`, the reply comes as server-sent events: `message` with your
    message as it is stored, a `delta` for each piece as it comes, and last `reply` with the stored reply, or `error`.

    Choose the `message_id` yourself, and you can send the request again after any failure: there will be one message
    and one reply. A reply is finished and stored even if you hang up.
    """
    conversations: Conversations = current_app.extensions["conversations"]
    with contextlib.ExitStack() as held:
        held.callback(_take_place().release)
        turn = conversations.begin(_caller(), turn_request)
        logs.current().fields.update(turn.log_fields)
        if turn_request["stream"]:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return Response(EventStream(turn, held.pop_all()), mimetype=sse.MEDIA_TYPE, headers=headers)
        stored = [event for event in turn.events() if not isinstance(event, Delta)]
    return JsonResponse(f'{{"message":{turn.message},"reply":{stored[0].message}}}\n')


def _take_place() -> threading.BoundedSemaphore:
    """Take one of the threads that may be held for long; whoever gets it releases it. Aborts with 503 where none is."""
    places: threading.BoundedSemaphore = current_app.extensions["places"]
    if not places.acquire(blocking=False):
        abort(503, message="Too many turns or long lists are under way; try again.", headers={"Retry-After": "2"})
    return places


class EventStream:
    """The body of a streamed turn. Its close finishes what must happen, and lets go of what is held."""

    def __init__(self, turn: Turn, held: contextlib.ExitStack) -> None:
        self._turn, self._held = turn, held
        self._events = self._encode()
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        """Give the events."""
        return self._events

    def close(self) -> None:
        """Finish and store the reply, if the caller has not listened to its end."""
        if not self._closed:
            self._closed = True
            with self._held:
                for _ in self._events:
                    pass

    def _encode(self) -> Iterator[bytes]:
        yield sse.encode("message", self._turn.message)
        try:
            for event in self._turn.events():
                if isinstance(event, Delta):
                    yield b"".join(sse.encode("delta", {"content": piece}) for piece in event.pieces)
                else:
                    yield sse.encode("reply", event.message)
        except (ModelError, ReplyLostError) as exc:
            body, _, _ = answer_failure(exc)
            yield sse.encode("error", body)


def answer_failure(exc: ModelError | ReplyLostError | PersistenceError) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Give the error's body, status and headers for what can go wrong in a turn."""
    log.warning("The turn failed: %s (%s)", exc, exc.__cause__ or "no further cause")
    if isinstance(exc, ModelError):
        return errors.answer(exc.status, exc.message, {"Retry-After": exc.retry_after} if exc.retry_after else None)
    if isinstance(exc, ReplyLostError):
        cause = exc.cause
        message = f"The reply could not be stored, so it is in errors.reply: {cause.message}"
        return errors.answer(cause.status, message, _headers(cause.status), {"reply": exc.text})
    return errors.answer(exc.status, exc.message, _headers(exc.status), exc.errors)


def _headers(status: int) -> dict[str, str]:
    return {401: {"WWW-Authenticate": "ApiKey"}, 503: {"Retry-After": "2"}}.get(status, {})


@blueprint.route("/<uuid4:chat_id>", methods=["GET"], strict_slashes=False)
@blueprint.arguments(ChatQuerySchema(), location="query")
@blueprint.response(
    200,
    MessageSchema(many=True),
    description="The messages.",
    example=[QUESTION, REPLY],
    headers={
        "Link": {
            "description": 'While there is more: the next page\'s address, as `</chat/…?…>; rel="next"` (RFC 8288).',
            "schema": {"type": "string"},
        }
    },
)
@fails(
    {
        404: (NOT_FOUND, NOT_FOUND),
        422: INVALID,
        502: ("What is at API_BASE_URL does not answer as it should.", "API_BASE_URL: what is there answered 418."),
        503: ("It passes by itself: try again after `Retry-After` seconds.", AWAY),
    },
)
def read_chat(query: dict[str, Any], chat_id: str) -> ResponseReturnValue:
    """Read a chat

    Its messages in the order in which they were stored. With a `limit`, a page: follow the `Link` header for more.
    """
    client: PersistenceClient = current_app.extensions["client"]
    given = {name: str(value) for name, value in query.items()}
    with contextlib.ExitStack() as held:
        upstream = held.enter_context(client.list_messages(_caller(), given | {"chat_id": chat_id}))
        if "Content-Length" not in upstream.headers:  # it is streamed, for as long as the caller takes to read it
            held.callback(_take_place().release)
        body = pieces(upstream)
        first = _beginning(body)
        if first.strip() == b"[]" and not ("after" in given and _exists(client, chat_id)):
            abort(404, message=NOT_FOUND)
        response = Response(itertools.chain([first], body), mimetype="application/json")
        following = upstream.links.get("next", {}).get("url")
        if following:
            after = parse_qs(urlsplit(following).query)["after"][0]
            response.headers["Link"] = f'<{request.path}?{urlencode(given | {"after": after})}>; rel="next"'
        response.call_on_close(held.pop_all().close)
    return response


def _exists(client: PersistenceClient, chat_id: str) -> bool:
    with client.list_messages(_caller(), {"chat_id": chat_id, "limit": "1"}) as page:
        return _beginning(pieces(page)).strip() != b"[]"


def _beginning(body: Iterator[bytes]) -> bytes:
    """Give as much of a list's JSON as tells whether it is empty."""
    beginning = b""
    while len(beginning.strip()) < 2 and (piece := next(body, b"")):
        beginning += piece
    return beginning


def _caller() -> Caller:
    return Caller(presented_key().decode("latin-1"), logs.current().request_id)
