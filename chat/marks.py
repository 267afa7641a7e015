"""Who is at work on which turn, so that a repeat waits for the reply instead of asking the model again."""

import contextlib
import contextvars
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import gevent

from chat.client import Caller, PersistenceClient
from chat.errors import PersistenceError

RENEW_SECONDS = 5.0  # a mark that is not renewed for 20 s is free

log = logging.getLogger(__name__)


class Marks:
    """The marks of one worker, which the persistence service keeps for all of them."""

    def __init__(self, client: PersistenceClient) -> None:
        self._client = client
        self._worker_id = str(uuid.uuid4())
        self._held: dict[str, Caller | None] = {}  # by message_id, with whom to renew it; None: not to be renewed
        self._new: dict[str, tuple[list[str], gevent.Greenlet[..., list[str]]]] = {}  # by key, what is to be sent
        self._renewing = threading.Lock()
        self._renewer: threading.Thread | None = None

    @contextlib.contextmanager
    def hold(self, message_id: str, caller: Caller) -> Iterator[Callable[[], bool]]:
        """Mark a turn as at work here for as long as this context, and yield a function that waits for the mark.

        It returns False if another request is at work on the turn. A turn that fails is given back, so that the next
        in line may ask. If nobody can say who is at work, it goes on unmarked: a second bill is better than no answer.
        """
        if message_id in self._held:
            yield lambda: False
            return
        self._held[message_id] = None
        sent = self._send_soon(message_id, caller)

        def is_ours() -> bool:
            return message_id in sent.get()

        try:
            yield is_ours
        except BaseException:  # whatever it is, the next in line may ask; the error does not wait for that
            gevent.spawn(self._give_back, message_id, caller, is_ours)
            raise
        del self._held[message_id]

    def _send_soon(self, message_id: str, caller: Caller) -> "gevent.Greenlet[..., list[str]]":
        """Send the mark when all that is ready now has run, with those of other turns that begin in this while."""
        if caller.api_key not in self._new:  # keys apart, or a wrong one would fail others
            ids: list[str] = []
            self._new[caller.api_key] = ids, gevent.spawn(contextvars.copy_context().run, self._send, caller, ids)
        ids, sent = self._new[caller.api_key]
        ids.append(message_id)
        return sent

    def _send(self, caller: Caller, message_ids: list[str]) -> list[str]:
        del self._new[caller.api_key]
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew, daemon=True)
            self._renewer.start()
        try:
            ours = self._client.take_turns(caller, self._worker_id, message_ids)
        except PersistenceError as exc:
            log.warning("The turn can't be marked as at work: %s", exc)
            ours = [] if exc.status == 401 else message_ids  # with a 401 the turn itself will fail
        self._held |= dict.fromkeys(ours, caller)
        return ours

    def _give_back(self, message_id: str, caller: Caller, is_ours: Callable[[], bool]) -> None:
        try:
            if is_ours():
                self._held[message_id] = None
                with self._renewing:  # one that is under way would mark it anew, after this
                    pass
                with contextlib.suppress(PersistenceError):
                    self._client.give_back_turn(caller, self._worker_id, message_id)
        finally:
            del self._held[message_id]

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW_SECONDS)
            with self._renewing:
                held = {message_id: caller for message_id, caller in self._held.items() if caller}
                for caller in set(held.values()):  # with the key of one of the callers
                    try:
                        self._client.take_turns(caller, self._worker_id, held)
                        break
                    except PersistenceError as exc:
                        log.warning("The marks of %d turns can't be renewed: %s", len(held), exc)
                        if exc.status != 401:
                            break
