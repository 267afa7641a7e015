"""The connections to PostgreSQL: a pool in each worker, one function that runs a statement, and the only retry."""

import logging
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any

import gevent
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ReadOnlySqlTransaction
from psycopg_pool import ConnectionPool, PoolTimeout

from persistence import deadline, failures, queries
from persistence.connection import Connection
from persistence.hosts import Hosts
from persistence.migrate import apply_schema

CONNECT_SECONDS = 2  # the least that libpq knows
WAIT_SECONDS = 3.0  # for a connection of the pool; with the statement_timeout of hosts.py, less than a request may take
CHECK_SECONDS = 2.0
RESTED_SECONDS = 1.0  # a connection that rested for longer is tried before its use: it may have died without a word
READY_SECONDS = 0.75
RECONNECT_SECONDS = 0.3
BATCH_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class Database:
    """A pool for one worker process; `conninfo` and `password` as libpq takes them, `size` connections at most."""

    def __init__(self, conninfo: str, password: str | None, size: int) -> None:
        self._hosts = Hosts(conninfo)
        self._options: dict[str, Any] = {
            "hosts": self._hosts,
            "autocommit": True,
            "client_encoding": "UTF8",
            "connect_timeout": CONNECT_SECONDS,
            "prepare_threshold": 0,
            "application_name": "persistence",
        }
        if password:
            self._options["password"] = password
        if "target_session_attrs" not in conninfo_to_dict(conninfo):
            self._options["target_session_attrs"] = "read-write"  # never a standby
        self._conninfo = conninfo
        self._pool = self._make_pool(size)
        self._probe = self._make_pool(1)  # so that the look never waits for a connection that is at work
        self._migrated, self._closed = threading.Event(), threading.Event()
        self._failure = ""  # of the last try to apply the schema

    def _make_pool(self, size: int) -> ConnectionPool[Connection]:
        return ConnectionPool(
            self._conninfo,
            connection_class=Connection,
            kwargs=self._options,
            min_size=1,
            max_size=size,
            check=self._check,
            reconnect_timeout=RECONNECT_SECONDS,  # then it is tried anew, instead of after a growing pause
            # a pool that has given up tries again only if it is told to
            reconnect_failed=lambda pool: pool.check() if pool.get_stats()["requests_waiting"] else None,
            open=False,
        )

    def _check(self, connection: Connection) -> None:
        if time.monotonic() - connection.used_at > RESTED_SECONDS:
            try:
                with gevent.Timeout(
                    min(CHECK_SECONDS, deadline.remaining()), psycopg.OperationalError("a rested connection")
                ):
                    connection.execute("", prepare=False)
            except psycopg.Error:
                self._drain()
                raise

    def _drain(self) -> None:
        """Close the connections that nobody uses: they may be as dead as the one that was tried."""
        self._pool.drain()
        self._probe.drain()

    def open(self) -> None:
        """Start connecting, and apply the schema as soon as the database is there. Call it after the fork."""
        self._pool.open()
        self._probe.open()
        threading.Thread(target=self._migrate, name="migrate", daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._pool.close(timeout=1)
        self._probe.close(timeout=1)

    def _migrate(self) -> None:
        options = self._options | {"prepare_threshold": None}
        while not self._closed.is_set():
            try:
                deadline.begin()
                with Connection.connect(self._conninfo, **options) as connection:
                    apply_schema(connection)
            except psycopg.Error as exc:
                if self._failure != (failure := failures.describe(exc)) and str(exc) != self._hosts.problem:
                    log.warning("The schema is not applied: %s", failure)
                self._failure = failure
                self._closed.wait(0.5)
            else:
                self._migrated.set()
                return

    def run(
        self, statement: str, params: Mapping[str, Any] | None = None, *, repeatable: bool = True
    ) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows. Raises psycopg.Error.

        If the connection turns out to be dead, or its server has become a standby, a `repeatable` statement is run once
        more, on a fresh connection.
        """
        while True:
            connection = self._take()
            try:
                return connection.execute(statement, params).fetchall()
            except failures.PASSING as exc:
                is_lost = connection.closed or isinstance(exc, ReadOnlySqlTransaction)
                if is_lost:
                    connection.close()
                    self._drain()
                if not repeatable or not is_lost or not deadline.remaining():
                    raise
                log.info("A connection was lost, the statement is run again: %s", failures.describe(exc))
                repeatable = False  # a second time
            finally:
                self._give_back(connection)

    def stream(self, statement: str, params: Mapping[str, Any]) -> Generator[list[bytes], None, None]:
        """Run a COPY … TO STDOUT and return its rows, in batches of about BATCH_BYTES, each row with its line break.

        The connection is held until the end, or until the generator is closed. Raises psycopg.Error.
        """
        connection = self._take()
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(queries.get("limit_export"), prepare=False)
                with cursor.copy(statement, params) as copy:
                    batch: list[bytes] = []
                    size = 0
                    try:
                        for row in copy:
                            batch.append(bytes(row))
                            size += len(row)
                            if size > BATCH_BYTES:
                                yield batch
                                batch, size = [], 0
                                deadline.begin()
                        yield batch
                    except BaseException:  # GeneratorExit too: psycopg would cancel it, and read its rows to their end
                        connection.close()
                        raise
        finally:
            self._give_back(connection)

    def _take(self) -> Connection:
        deadline.begin_if_none()
        if not self._migrated.is_set() and not self._migrated.wait(min(WAIT_SECONDS, deadline.remaining())):
            raise psycopg.OperationalError(self._schema_problem())
        seconds = min(WAIT_SECONDS, deadline.remaining())
        try:
            return self._pool.getconn(seconds)
        except PoolTimeout:
            raise self._no_connection(seconds) from None

    def _schema_problem(self) -> str:
        return f"the schema is not applied yet: {self._hosts.problem or self._failure or 'it is being looked at'}"

    def _no_connection(self, seconds: float) -> PoolTimeout:
        return PoolTimeout(f"no connection within {seconds:.2f} s: {self._hosts.problem or 'all are at work'}")

    def _give_back(self, connection: Connection) -> None:
        connection.used_at = time.monotonic()
        self._pool.putconn(connection)

    def problem(self) -> str | None:
        """Return within a second why the database can't be written to or lacks the schema, or None."""
        if not self._migrated.is_set():
            return self._schema_problem()
        deadline.begin(READY_SECONDS)
        try:
            with self._probe.connection(READY_SECONDS) as connection:
                problem: str | None = connection.execute(queries.get("select_problem")).fetchall()[0][0]
                if problem:
                    connection.close()  # the next one may be to another server
                return problem
        except PoolTimeout:
            return str(self._no_connection(READY_SECONDS))
        except psycopg.Error as exc:
            return failures.describe(exc)
