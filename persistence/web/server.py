"""gunicorn, set up for both services: its options, its port, and how it stops."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from persistence.web.port import check_port
from persistence.web.worker import Worker

GRACE_SECONDS = 30
WAITING_CONNECTIONS = 1000  # kept open, idle or waiting for a thread, beyond those being served


class GracefulArbiter(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's master, which takes Ctrl-C as it takes SIGTERM: requests are finished first."""

    handle_int = Arbiter.handle_term


class RootLogger(Logger):  # type: ignore[misc]
    """gunicorn's own messages, sent to the root logger, which writes JSON."""

    def setup(self, cfg: Any) -> None:
        """Add no handlers of its own."""
        self.loglevel = self.error_log.getEffectiveLevel()
        self.error_log.setLevel("WARNING")
        self.error_log.propagate = True


class Server(BaseApplication):  # type: ignore[misc]
    """A Flask app under gunicorn: `create_app` runs in each worker, after the fork."""

    def __init__(self, create_app: Callable[[], Flask], options: dict[str, Any]) -> None:
        self.create_app, self.options = create_app, options
        super().__init__()

    def load_config(self) -> None:
        """Give gunicorn its options."""
        for name, value in self.options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Make the app of one worker."""
        return self.create_app()

    def run(self) -> None:
        """Serve until a signal says stop, then exit the process."""
        GracefulArbiter(self).run()


def allow_open_files(count: int) -> None:
    """Let this process have so many files open, connections included, as far as it may; many a start gives it 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )


def serve(
    create_app: Callable[[], Flask],
    *,
    host: str,
    port: int,
    workers: int,
    threads: int,
    on_worker_exit: Callable[[Flask], None] = lambda app: None,
) -> None:
    """Serve the app on `host`:`port` with `workers` processes of `threads` threads, until SIGTERM or Ctrl-C.

    Then the process exits. `on_worker_exit` runs in each worker after its last request. Raises SettingsError where the
    port is taken.
    """
    check_port(host, port)
    allow_open_files(WAITING_CONNECTIONS + 3 * threads + 256)  # a thread may hold a connection on each side, and a file
    shared_memory = Path("/dev/shm")  # noqa: S108  # a heartbeat's file must never wait for a disk
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": workers,
        "threads": threads,
        "worker_class": Worker,
        "worker_connections": threads + WAITING_CONNECTIONS,
        "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
        "reuse_port": True,  # with one shared socket, the worker that wakes first takes most connections
        "graceful_timeout": GRACE_SECONDS,
        "keepalive": 75,
        "limit_request_line": 8190,
        "control_socket_disable": True,
        "http_parser": "python",  # the one that is there, without a look for another at each request
        "forwarded_allow_ips": "*",  # no look at who sends it,
        "forwarder_headers": "",  # since nobody's word changes
        "secure_scheme_headers": {},  # where the app thinks it is
        "sendfile": False,  # socket.sendfile refuses sockets that don't block
        "logger_class": RootLogger,
        "worker_exit": lambda arbiter, worker: on_worker_exit(worker.wsgi) if hasattr(worker, "wsgi") else None,
    }
    Server(create_app, options).run()
