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
        self._renewing = threading.Lock()
        self._renewer: threading.Thread | None = None

    @contextlib.contextmanager
    def hold(self, message_id: str, caller: Caller) -> Iterator[Callable[[], bool]]:
        """Mark a turn as at work here for as long as this context, and return what waits for the mark.

        That returns False if another request is at work on the turn. A turn that fails is given back, so that the next
        in line may ask. If nobody can say who is at work, it goes on unmarked: a second bill is better than no answer.
        """
        is_ours = gevent.spawn(contextvars.copy_context().run, self._take, message_id, caller).get
        try:
            yield is_ours
        except BaseException:  # whatever it is, the next in line may ask; in the background, as nobody waits for this
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
        self._marked[message_id] = caller  # before the call, in which others of this worker run
        if self._renewer is None:
            self._renewer = threading.Thread(target=self._renew, daemon=True)
            self._renewer.start()
        try:
            is_ours = message_id in self._client.take_turns(caller, self._worker_id, [message_id])
        except PersistenceError as exc:
            log.warning("The turn can't be marked as at work: %s", exc)
            is_ours = exc.status != 401  # with which the turn itself will fail
        if not is_ours:
            del self._marked[message_id]
        return is_ours

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
