"""One turn of a conversation: store, recall, ask, store. Knows no Flask and no HTTP."""

import contextvars
import json
import logging
import time
import uuid
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from gevent.pool import Pool

from chat import history
from chat.client import NDJSON, Caller, PersistenceClient, rows
from chat.errors import ModelError, PersistenceError, TurnError
from chat.marks import Marks
from chat.model import Model
from chat.settings import Settings

STORE_SECONDS = 60.0  # a reply is tried to be stored for so long: a failover of the database takes 20 to 30 s

log = logging.getLogger(__name__)


class Event(NamedTuple):
    """What happens in a turn, in this order, by its `name`; `reply` or `error` is the last one.

    `message`: the human's message as it is stored, as JSON. `delta`: a piece of the reply; an empty one says that the
    provider has begun. `reply`: the reply as it is stored, as JSON. `error`: the exception.
    """

    name: str
    data: Any


class Turn:
    """One turn, which goes on whether or not somebody still waits for its events.

    `request`: `content`, and `chat_id` and `message_id` if they are chosen. `log_fields`: what the log is to say of it.
    """

    def __init__(self, conversations: "Conversations", caller: Caller, request: dict[str, Any]) -> None:
        self._conversations, self.caller = conversations, caller
        self._content: str = request["content"]
        self.message_id: str = request.get("message_id") or str(uuid.uuid4())
        self._chat_id: str = request.get("chat_id") or history.chat_id(self.message_id)
        self._reply_id = history.reply_id(self.message_id)
        self._is_new_chat = "chat_id" not in request
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._began = time.monotonic()
        self.log_fields: dict[str, Any] = {"model": conversations.settings.openai_model}
        self._is_abandoned = False

    def next_event(self, seconds: float | None = None) -> Event | None:
        """Return the next event, or None if none comes within `seconds`."""
        try:
            return self._events.get(timeout=seconds)
        except Empty:
            return None

    def abandon(self) -> None:
        """Note that nobody waits for events any more: if they are not over, the log gets a line at their end."""
        self._is_abandoned = True

    def run(self) -> None:
        """Take the turn, and put what happens into the queue."""
        try:
            self._events.put(Event("reply", self._take()))
        except Exception as exc:  # whatever it is: somebody waits for the end
            if isinstance(exc, TurnError):
                self.log_fields["failure"] = str(exc)
            else:
                log.exception("A turn failed")
            self._events.put(Event("error", exc))
        if self._is_abandoned:
            fields = {"message": "A turn whose caller had gone has ended", "message_id": self.message_id}
            log.info("", extra={"fields": fields | self.log_fields})

    def _take(self) -> str:
        conversations, client = self._conversations, self._conversations.client
        if conversations.settings.lacks_key and client.read_message(self.caller, self._reply_id) is None:
            message = "There is no key for the model; fill OPENAI_API_KEY or its file."
            raise ModelError(503, message, retry_after="60")
        question = {"message_id": self.message_id, "chat_id": self._chat_id, "content": self._content, "role": "human"}
        is_new, pause = None, 0.1
        while True:
            with conversations.marks.hold(self.message_id, self.caller) as is_ours:
                if is_new is None:  # beside the mark, as both take some milliseconds
                    stored, is_new = client.store_message(self.caller, question)
                    self._events.put(Event("message", stored))
                # look only once the mark is there: from then on nobody else stores this reply
                is_first = is_ours() and is_new
                reply = None if is_first else client.read_message(self.caller, self._reply_id)
                if reply is not None:
                    self._hear(json.loads(reply)["content"])
                    return self._store_once(json.loads(reply))  # only a write waits for a standby
                if is_ours():
                    return self._ask(is_first and self._is_new_chat)
            time.sleep(pause)  # another request is at work on it
            is_new, pause = False, min(1.0, 1.5 * pause)

    def _ask(self, chat_is_empty: bool) -> str:
        earlier = [] if chat_is_empty else self._recall()
        prompt = history.prompt(self._conversations.settings.system_prompt, earlier, self._content)
        return self._store(self._conversations.model.ask(prompt, self._hear, self.log_fields))

    def _recall(self) -> list[dict[str, Any]]:
        settings = self._conversations.settings
        if settings.history_messages == 0:
            return []
        query = {
            "chat_id": self._chat_id,
            "order": "desc",
            "after": self.message_id,
            "limit": str(settings.history_messages),
        }
        # line by line: only what fits is held, however long the messages are
        with self._conversations.client.list_messages(self.caller, query, NDJSON) as response:
            kept = history.window(rows(response), settings.history_chars)
        self.log_fields["history_sent"] = len(kept)
        return kept

    def _hear(self, piece: str) -> None:
        if piece:
            self.log_fields.setdefault("first_piece_ms", round((time.monotonic() - self._began) * 1000, 1))
        self._events.put(Event("delta", piece))

    def _store(self, text: str) -> str:
        reply = {"message_id": self._reply_id, "chat_id": self._chat_id, "content": text, "role": "ai"}
        end, pause = time.monotonic() + STORE_SECONDS, 0.5
        while True:
            try:
                return self._store_once(reply)
            except PersistenceError as exc:
                if exc.status != 503 or time.monotonic() + pause > end:
                    message = f"The reply could not be stored, so it is in errors.reply: {exc.message}"
                    raise PersistenceError(exc.status, message, errors={"reply": text}) from exc
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)

    def _store_once(self, reply: dict[str, Any]) -> str:
        client = self._conversations.client
        try:
            return client.store_message(self.caller, reply)[0]
        except PersistenceError as exc:
            first = client.read_message(self.caller, self._reply_id) if exc.status == 409 else None
            if first is None:
                raise
            return first  # another request for the same turn was faster


class Conversations:
    """The turns of one worker, and what they are made with."""

    def __init__(self, settings: Settings, client: PersistenceClient, model: Model) -> None:
        self.settings, self.client, self.model = settings, client, model
        self.marks = Marks(client)
        self._under_way = Pool(settings.max_turns)

    def begin(self, caller: Caller, request: dict[str, Any]) -> Turn:
        """Begin a turn, which runs in a greenlet of its own. Raises TurnError if too many are under way."""
        if self._under_way.full():
            raise TurnError(503, "Too many turns are under way; try again.")
        turn = Turn(self, caller, request)
        self._under_way.spawn(contextvars.copy_context().run, turn.run)  # the log's request id is in the context
        return turn

    def is_busy(self) -> bool:
        """Return whether turns are under way."""
        return bool(self._under_way)
