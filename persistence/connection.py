"""A connection to PostgreSQL that waits in gevent's loop."""

import contextlib
from functools import partial
from typing import Any, Self, TypeVar

import gevent
import psycopg
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

from persistence import deadline, queries
from persistence.hosts import Hosts

T = TypeVar("T")

OLDEST = 140000  # PostgreSQL 14, as libpq writes it
CANCEL_SECONDS = 0.2  # with the 9.5 s of a deadline, under the contract's 10 s

WAITS = {Wait.R: (wait_read, Ready.R), Wait.W: (wait_write, Ready.W), Wait.RW: (wait_readwrite, Ready.RW)}


class Connection(psycopg.Connection[Any]):
    """A connection that waits in gevent's loop, until the deadline at most, and is closed if a wait is cut.

    Only a deadline of our own helps against a server that is stopped: statement_timeout needs it to run.
    """

    used_at = 0.0  # of time.monotonic

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect to the first of the `hosts` that takes a connection."""
        hosts: Hosts = options.pop("hosts")
        return hosts.connect(partial(cls._open, conninfo, **options))

    @classmethod
    def _open(cls, conninfo: str, **options: Any) -> Self:
        connection = super().connect(conninfo, **options)
        if connection.info.server_version < OLDEST:
            found = connection.info.parameter_status("server_version")
            connection.close()
            raise psycopg.OperationalError(f"PostgreSQL {found} is too old: it needs {OLDEST // 10000} or newer")
        pid = connection.execute(queries.get("select_backend_pid"), prepare=False).fetchone()
        if pid != (connection.info.backend_pid,):
            # a pooler: at its next server a name of ours may be another client's, even for another statement
            connection.prepare_threshold = None
        return connection

    def wait(self, gen: PQGen[T], interval: float = 0.0, timeout: float | None = None) -> T:
        """Return what `gen` returns. Raises an OperationalError at the deadline."""
        timer = None
        try:
            wanted = next(gen)  # a row of an export is often there already
            timer = gevent.Timeout(deadline.remaining() if timeout is None else timeout)
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
            try:
                name = f"{self.info.host}:{self.info.port}"
                if exc is timer:  # a commit that waits for its standby has no other limit
                    with contextlib.suppress(psycopg.Error):
                        self.cancel_safe(timeout=CANCEL_SECONDS)
            finally:
                self.pgconn.finish()
            if exc is timer:
                raise psycopg.OperationalError(f"{name} did not answer in time") from None
            raise
