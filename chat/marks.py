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
        self._marked: dict[str, Caller | None] = {}  # by message_id; None: it is being given back
        self._new: dict[str, Caller] = {}  # those of them that are still to be sent
        self._sending, self._renewing = threading.Lock(), threading.Lock()
        self._renewer: threading.Thread | None = None

    @contextlib.contextmanager
    def hold(self, message_id: str, caller: Caller) -> Iterator[Callable[[], bool]]:
        """Mark a turn as at work here for as long as this context, and yield a function that waits for the mark.

        It returns False if another request is at work on the turn. A turn that fails is given back, so that the next
        in line may ask. If nobody can say who is at work, it goes on unmarked: a second bill is better than no answer.
        """
        is_ours = gevent.spawn(contextvars.copy_context().run, self._take, message_id, caller).get
        try:
            yield is_ours
        except BaseException:  # whatever it is, the next in line may ask; the error does not wait for that
            gevent.spawn(self._give_back, message_id, caller, is_ours)
            raise
        if is_ours():
            del self._marked[message_id]

    def _give_back(self, message_id: str, caller: Caller, is_ours: Callable[[], bool]) -> None:
        if is_ours():
            self._marked[message_id] = None
            with self._renewing:  # one that is under way would mark it anew, after this
                pass
            with contextlib.suppress(PersistenceError):
                self._client.give_back_turn(caller, self._worker_id, message_id)
            del self._marked[message_id]

    def _take(self, message_id: str, caller: Caller) -> bool:
        if message_id in self._marked:
            return False
        self._marked[message_id] = self._new[message_id] = caller
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew, daemon=True)
            self._renewer.start()
        with self._sending:  # one request at a time: the turns that come meanwhile are sent together in the next
            if message_id in self._new:
                together = [new for new, its_caller in self._new.items() if its_caller.api_key == caller.api_key]
                for new in together:
                    del self._new[new]
                for other in set(together).difference(self._send(caller, together)):
                    del self._marked[other]
        return self._marked.get(message_id) is caller

    def _send(self, caller: Caller, message_ids: list[str]) -> list[str]:
        try:
            return self._client.take_turns(caller, self._worker_id, message_ids)
        except PersistenceError as exc:
            log.warning("The turn can't be marked as at work: %s", exc)
            return [] if exc.status == 401 else message_ids  # with a 401 the turn itself will fail

    def _renew(self) -> None:
        while True:
            time.sleep(RENEW_SECONDS)
            with self._renewing:
                marked = {message_id: caller for message_id, caller in self._marked.items() if caller}
                for caller in set(marked.values()):  # with the key of one of the callers
                    try:
                        self._client.take_turns(caller, self._worker_id, marked)
                        break
                    except PersistenceError as exc:
                        log.warning("The marks of %d turns can't be renewed: %s", len(marked), exc)
                        if exc.status != 401:
                            break
