"""A connection to PostgreSQL that waits in gevent's loop."""

from typing import Any, TypeVar

import gevent
import psycopg
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

from persistence import deadline

T = TypeVar("T")

WAITS = {Wait.R: (wait_read, Ready.R), Wait.W: (wait_write, Ready.W), Wait.RW: (wait_readwrite, Ready.RW)}


class Connection(psycopg.Connection[Any]):
    """A connection that waits in gevent's loop, until the deadline at most, and is closed if a wait is cut.

    Only a deadline of our own helps against a server that is stopped: statement_timeout needs it to run.
    """

    used_at = 0.0  # of time.monotonic

    def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Return what `gen` returns. Raises an OperationalError at the deadline."""
        timer = gevent.Timeout(deadline.remaining() if timeout is None else timeout)
        try:
            wanted = next(gen)
            with timer:
                while True:
                    wait, ready = WAITS[wanted]
                    wait(self.pgconn.socket)
                    wanted = gen.send(ready)
        except StopIteration as exc:
            result: T = exc.value
            return result
        except psycopg.Error:
            raise
        except BaseException as exc:  # whatever cut the wait: the statement is still at work on this connection
            self.pgconn.finish()
            if exc is timer:
                raise psycopg.OperationalError("the server did not answer in time") from None
            raise
