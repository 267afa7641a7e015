"""A PostgreSQL that tests may stop, kill and start again."""

import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from persistence.embedded import EmbeddedPostgres
from tests.services import postmaster


class Postgres:
    """A PostgreSQL of one's own, over the files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts: list[EmbeddedPostgres] = []
        self.start()

    def start(self) -> None:
        self.starts.append(EmbeddedPostgres(self.folder))
        self.conninfo = self.starts[-1].start()
        self.socket = f"{conninfo_to_dict(self.conninfo)['host']}/.s.PGSQL.5432"

    def connect(self, conninfo: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo or self.conninfo, autocommit=True, connect_timeout=2)

    def run(self, statement: str, conninfo: str | None = None) -> None:
        with self.connect(conninfo) as connection:
            connection.execute(statement)

    def make_database(self) -> str:
        name = f"test_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return make_conninfo(self.conninfo, dbname=name)

    def restart(self, end_signal: signal.Signals) -> None:
        ended = postmaster(self.folder)
        ended.send_signal(end_signal)
        ended.wait(30)
        self.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all of it as a debugger does: its sockets stay open and say nothing."""
        first = postmaster(self.folder)
        processes = [first, *first.children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                process.resume()
