"""One turn of a conversation: store, recall, ask, store. Knows no Flask and no HTTP."""

import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from chat import history
from chat.client import FOR_REPLIES, NDJSON, Caller, PersistenceClient, PersistenceError, rows
from chat.history import Message
from chat.model import Model, ModelError, Reply
from chat.settings import Settings


class Delta(NamedTuple):
    """Pieces of the reply, one most often: those that came together."""

    pieces: list[str]


class Stored(NamedTuple):
    """The reply as it is stored, as JSON: the end of a turn."""

    message: str


class ReplyLostError(Exception):
    """The reply `text` is there, but could not be stored: `cause` says why."""

    def __init__(self, text: str, cause: PersistenceError) -> None:
        super().__init__(str(cause))
        self.text, self.cause = text, cause


class Turn:
    """A turn whose question is stored, and whose reply is stored already or has begun to come.

    `message`: the question as it is stored, as JSON. `log_fields`: what the log is to say of the turn.
    """

    def __init__(self, conversations: "Conversations", caller: Caller, request: dict[str, Any]) -> None:
        self._conversations, self._caller = conversations, caller
        self._message_id = request.get("message_id") or str(uuid.uuid4())
        self._chat_id = request.get("chat_id") or history.chat_id(self._message_id)
        self._reply_id = history.reply_id(self._message_id)
        self._is_new_chat = "chat_id" not in request
        self.log_fields: dict[str, Any] = {"history_sent": 0, "history_left_out": 0}
        self._reply: Reply | None = None
        self._stored: str | None = None
        self._begin(request["content"])

    def _begin(self, content: str) -> None:
        client = self._conversations.client
        if self._conversations.settings.lacks_key:
            self._stored = client.read_message(self._caller, self._reply_id)
            if self._stored is None:
                raise ModelError(503, "There is no key for the model; fill OPENAI_API_KEY or its file.", "60")
        question = {"message_id": self._message_id, "chat_id": self._chat_id, "content": content, "role": "human"}
        self.message, is_new = client.store_message(self._caller, question)
        if not is_new:
            self._stored = client.read_message(self._caller, self._reply_id)
        if self._stored is None:
            earlier = [] if is_new and self._is_new_chat else self._recall()
            settings = self._conversations.settings
            self._reply = self._conversations.model.ask(history.prompt(settings.system_prompt, earlier, content))

    def _recall(self) -> list[Message]:
        settings = self._conversations.settings
        if settings.history_messages == 0:
            return []
        query = {
            "chat_id": self._chat_id,
            "order": "desc",
            "after": self._message_id,
            "limit": str(settings.history_messages),
        }
        # line by line: only what fits is held, however long the messages are
        with self._conversations.client.list_messages(self._caller, query, NDJSON) as response:
            kept, left_out = history.window(rows(response), settings.history_messages, settings.history_chars)
        self.log_fields = {"history_sent": len(kept), "history_left_out": left_out}
        if "next" in response.links:
            self.log_fields["history_has_older"] = True  # beyond those that were looked at
        return kept

    def events(self) -> Iterator[Delta | Stored]:
        """Give the pieces as they come, and then the stored reply.

        Raises ModelError where there is no whole reply, ReplyLostError where it can't be stored.
        """
        if self._reply is not None:
            try:
                yield from map(Delta, self._reply.pieces())
            finally:
                self._reply.close()
            self._stored = self._store(self._reply.text)
        elif self._stored is not None:
            yield Delta([json.loads(self._stored)["content"]])
        if self._stored is not None:
            yield Stored(self._stored)

    def _store(self, text: str) -> str:
        client = self._conversations.client
        reply = {"message_id": self._reply_id, "chat_id": self._chat_id, "content": text, "role": "ai"}
        try:
            try:
                return client.store_message(self._caller, reply, FOR_REPLIES)[0]
            except PersistenceError as exc:
                first = client.read_message(self._caller, self._reply_id) if exc.status == 409 else None
                if first is None:
                    raise
                return first  # the same request was sent twice, and the other was faster
        except PersistenceError as exc:
            raise ReplyLostError(text, exc) from exc


class Conversations:
    """What turns are made with."""

    def __init__(self, settings: Settings, client: PersistenceClient, model: Model) -> None:
        self.settings, self.client, self.model = settings, client, model

    def begin(self, caller: Caller, request: dict[str, Any]) -> Turn:
        """Store the question, and give the turn when the reply is there or has begun to come.

        `request`: `content`, and `chat_id` and `message_id` if they are chosen. Raises PersistenceError, ModelError.
        """
        return Turn(self, caller, request)
