"""The connections to PostgreSQL: a pool in each worker, one function that runs a statement, and the only retry."""

import functools
import hashlib
import logging
import re
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.generators import execute, fetch_many
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from persistence import queries
from persistence.migrate import apply_schema
from persistence.web import deadline

Row = tuple[str | None, ...]  # as PostgreSQL writes values
T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2  # the least that libpq knows
CHECK_SECONDS = 2.0
IDLE_SECONDS = (
    1.0  # a connection that rested for longer is looked at before its use: its end may be gone without a word
)
WAIT_SECONDS = 4.0  # for a connection of the pool,
ASK_SECONDS = 0.5  # which is asked again so often: it tries to connect when it is asked, and gives up at once
SCHEMA_LOOK_SECONDS = 3.0  # to find that the schema is applied; a silent connection is given up then
STREAM_BYTES = 64 * 1024


class DatabaseUnavailableError(Exception):
    """The database did not do it now, and may do it later."""


class Prepared(NamedTuple):
    """A statement as PostgreSQL prepares it, and the names of its parameters, of which the first is $1."""

    name: bytes
    text: bytes
    parameters: tuple[str, ...]


@functools.cache  # of our own statements only, each with its sets of filters: a few hundred
def prepare(statement: str) -> Prepared:
    """Give a statement with parameters like %(name)s as PostgreSQL wants it, with $1, $2, …"""
    parameters = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    text = re.sub(r"%\((\w+)\)s", lambda match: f"${parameters.index(match[1]) + 1}", statement).replace("%%", "%")
    return Prepared(hashlib.sha256(text.encode()).hexdigest()[:32].encode(), text.encode(), parameters)


class DeadlineConnection(Connection[Any]):
    """A connection on which nothing takes longer than the present request may.

    Only this helps against a server that is stopped: statement_timeout needs it alive, tcp_user_timeout needs its
    kernel dead.
    """

    used = 0.0  # of time.monotonic
    silent = False

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self._known: set[bytes] = set()  # names of statements that are prepared

    def fetch(self, statement: str, params: Mapping[str, Any]) -> list[Row]:
        """Run a prepared statement, and give its rows as text. Raises psycopg.Error.

        Without a cursor, whose care for Python's types costs as much as all the rest.
        """
        prepared = prepare(statement)
        if prepared.name not in self._known:
            self.pgconn.send_prepare(prepared.name, prepared.text)
            self._result()
            self._known.add(prepared.name)
        values = [params[name] for name in prepared.parameters]
        self.pgconn.send_query_prepared(
            prepared.name, [None if value is None else str(value).encode() for value in values]
        )
        result = self._result()
        columns = range(result.nfields)
        return [
            tuple(None if (value := result.get_value(row, column)) is None else value.decode() for column in columns)
            for row in range(result.ntuples)
        ]

    def _result(self) -> PGresult:
        result: PGresult = self.wait(execute(self.pgconn))[-1]
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
        return result

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for the server. Raises an OperationalError when the request's time is over; the connection is lost."""
        try:
            return super().wait(gen, interval, deadline.remaining() if timeout is None else timeout)
        except psycopg.OperationalError:
            self.silent = self.pgconn.transaction_status == TransactionStatus.ACTIVE
            raise


class Database:
    """A pool for one worker process; `conninfo` and `password` as libpq takes them, `size` connections at most."""

    def __init__(self, conninfo: str, password: str | None, size: int) -> None:
        options: dict[str, Any] = {
            "autocommit": True,
            "client_encoding": "UTF8",
            "connect_timeout": CONNECT_SECONDS,
            "prepare_threshold": 0,
            "application_name": "persistence",
        }
        self._options = options | ({"password": password} if password else {})
        self._conninfo = conninfo
        self._pool = ConnectionPool(
            conninfo,
            connection_class=DeadlineConnection,
            kwargs=self._options,
            min_size=1,
            max_size=size,
            reconnect_timeout=0,
            num_workers=4,
            open=False,
        )
        self._probe: DeadlineConnection | None = None
        self._migrated = threading.Event()
        self._closed = threading.Event()

    def open(self) -> None:
        """Start connecting, and apply the schema as soon as the database is there. Call it after the fork."""
        self._pool.open()
        threading.Thread(target=self._migrate, name="migrate", daemon=True).start()

    def close(self) -> None:
        """Close all connections."""
        self._closed.set()
        self._pool.close(timeout=1)
        if self._probe is not None:
            self._probe.close()

    def _migrate(self) -> None:
        reported = ""
        while not self._closed.is_set():
            try:
                with DeadlineConnection.connect(self._conninfo, **self._options) as connection:
                    deadline.begin(SCHEMA_LOOK_SECONDS)
                    connection.autocommit = False
                    while not apply_schema(connection):
                        if self._closed.wait(0.05):
                            return
                        deadline.begin(SCHEMA_LOOK_SECONDS)
            except psycopg.Error as exc:
                if reported != str(exc):
                    reported = str(exc)
                    log.warning("Waiting for the database, to apply the schema: %s", exc)
                self._closed.wait(0.5)
            else:
                self._migrated.set()
                return

    def run(self, statement: str, params: Mapping[str, Any], *, repeatable: bool = True) -> list[Row]:
        """Run one statement in a transaction of its own, and give its rows.

        Where the connection turns out to be dead, the statement is run once more on one that is alive; one that is not
        `repeatable` runs only once, on a connection that was looked at before. Raises DatabaseUnavailableError.
        """
        if repeatable:
            connection = self._take()
            try:
                return connection.fetch(statement, params)
            except psycopg.OperationalError as exc:
                if not connection.broken:
                    raise _unavailable(exc) from exc
                log.info("A connection was lost, the statement is run again: %s", exc)
            except psycopg.Error as exc:
                raise _unavailable(exc) from exc
            finally:
                self._give_back(connection)
        connection = self._take(alive=True)
        try:
            return connection.fetch(statement, params)
        except psycopg.Error as exc:
            raise _unavailable(exc) from exc
        finally:
            self._give_back(connection)

    def stream(self, statement: str, params: Mapping[str, Any]) -> Generator[list[bytes], None, None]:
        """Run a COPY … TO STDOUT, and give its rows in batches of about STREAM_BYTES, each row with its line break.

        The connection is held until the end, or until the generator is closed. Raises DatabaseUnavailableError.
        """
        connection = self._take(alive=True)
        try:
            with connection.cursor().copy(statement.encode(), params):
                patience = deadline.remaining()  # for the first rows; the reader may take long over the others
                try:
                    while connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
                        yield connection.wait(_copy_rows(connection.pgconn), timeout=patience)
                        patience = deadline.REQUEST_SECONDS
                except BaseException:  # psycopg would now cancel the statement, and read its rows to their end
                    connection.close()
                    raise
        except psycopg.Error as exc:
            raise _unavailable(exc) from exc
        finally:
            self._give_back(connection)

    def _take(self, *, alive: bool = False) -> DeadlineConnection:
        """Take a connection from the pool; one that was looked at just now, if it must be `alive` or has rested."""
        if not self._migrated.is_set() and not self._migrated.wait(min(WAIT_SECONDS, deadline.remaining())):
            raise DatabaseUnavailableError("the schema is not applied yet")
        while True:
            connection = self._ask_pool()
            if not alive and time.monotonic() - connection.used < IDLE_SECONDS:
                return connection
            try:
                with deadline.at_most(CHECK_SECONDS):
                    ConnectionPool.check_connection(connection)
            except psycopg.Error:
                self._give_back(connection)
            else:
                return connection

    def _ask_pool(self) -> DeadlineConnection:
        until = time.monotonic() + min(WAIT_SECONDS, deadline.remaining())
        while True:
            try:
                return self._pool.getconn(min(ASK_SECONDS, max(0.01, until - time.monotonic())))
            except (PoolTimeout, PoolClosed) as exc:
                if time.monotonic() >= until or self._closed.is_set():
                    raise DatabaseUnavailableError(f"no connection: {exc}") from exc

    def _give_back(self, connection: DeadlineConnection) -> None:
        connection.used = time.monotonic()
        if connection.silent:  # the others may be as dead
            self._pool.drain()
        self._pool.putconn(connection)

    def answers(self) -> bool:
        """Tell whether the database does, on a connection of its own, since the pool's may all be at work.

        Takes 2 s at most. One thread at a time may call it.
        """
        if not self._migrated.is_set():
            return False
        deadline.begin(CONNECT_SECONDS)
        for _ in range(2):  # an idle connection may have died unnoticed
            fresh = self._probe is None or self._probe.closed
            try:
                if self._probe is None or fresh:
                    self._probe = DeadlineConnection.connect(self._conninfo, **self._options)
                self._probe.execute(queries.get("select_ready"))
            except psycopg.Error:
                if self._probe is not None:
                    self._probe.close()
                if fresh:
                    return False
            else:
                return True
        return False


def _copy_rows(pgconn: PGconn) -> PQGen[list[bytes]]:
    rows: list[bytes] = []
    size = 0
    while size < STREAM_BYTES:
        length, row = pgconn.get_copy_data(1)
        if length > 0:
            rows.append(bytes(row))
            size += length
        elif length < 0:
            for result in (yield from fetch_many(pgconn)):
                if result.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
            return rows
        elif (yield Wait.R):
            pgconn.consume_input()
        elif rows:  # the next ones take their time
            return rows
    return rows


def _unavailable(exc: psycopg.Error) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(f"{type(exc).__name__} {exc.sqlstate or ''}: {exc}".splitlines()[0])
