"""gunicorn with its gevent worker, set up for both services: its options, its port, and how it stops."""

import contextlib
import errno
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from persistence.web.env import SettingsError
from persistence.web.worker import Worker, guard

KEEPALIVE_SECONDS = 5  # for the head of the next request; clients reconnect


class GracefulArbiter(Arbiter):  # type: ignore[misc]
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
        """Set gunicorn's options."""
        for name, value in self.options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the app of one worker."""
        app = self.create_app()
        app.wsgi_app = guard(app.wsgi_app)  # type: ignore[method-assign]  # as Flask's documentation has it
        return app

    def run(self) -> None:
        """Serve until a signal says stop, then exit the process."""
        GracefulArbiter(self).run()


def check_port(host: str, port: int) -> None:
    """Raise SettingsError if the address can't be listened on.

    The workers listen with SO_REUSEPORT, so that a second start on the same port would succeed, and another program's
    port make them die for ever. So it is tried once without that option.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as exc:
        name = "HOST" if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL else "PORT"
        raise SettingsError(f"{name}: can't listen on {host}:{port}: {exc.strerror or exc}") from None


def _allow_open_files(count: int) -> None:
    """Let this process have `count` files open, as far as it may; many a start gives it 1,024 or fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(
    create_app: Callable[[], Flask],
    *,
    host: str,
    port: int,
    workers: int,
    connections: int,
    graceful_timeout: int,
    when_ready: Callable[[], None] = lambda: None,
    on_worker_exit: Callable[[Flask], None] = lambda app: None,
) -> None:
    """Serve the app on `host`:`port` with `workers` processes, until SIGTERM or Ctrl-C; then the process exits.

    A worker takes `connections` at most. A stop gives `graceful_timeout` seconds to requests, and to what the app's
    extension `is_busy`, a function, says is under way. `when_ready` runs once, in the master, when signals are handled;
    `on_worker_exit` in each worker after its last request. Raises SettingsError if the port is taken.
    """
    check_port(host, port)
    _allow_open_files(3 * connections + 256)  # a turn has a connection on each of its three sides
    shared_memory = Path("/dev/shm")  # noqa: S108  # a heartbeat's file must never wait for a disk
    options = {
        "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "workers": workers,
        "worker_class": Worker,
        "worker_connections": connections,
        "worker_tmp_dir": str(shared_memory) if shared_memory.is_dir() else None,
        "reuse_port": True,  # with one shared socket, the worker that wakes first takes most connections
        "graceful_timeout": graceful_timeout,
        "keepalive": KEEPALIVE_SECONDS,
        "limit_request_line": 8190,
        "control_socket_disable": True,
        "forwarded_allow_ips": "*",  # no look at who sends it,
        "forwarder_headers": "",  # as nobody's word changes where the app thinks it is
        "secure_scheme_headers": {},
        "sendfile": False,  # it refuses sockets that do not block
        "logger_class": RootLogger,
        "when_ready": lambda arbiter: when_ready(),
        "worker_exit": lambda arbiter, worker: on_worker_exit(worker.wsgi) if hasattr(worker, "wsgi") else None,
    }
    Server(create_app, options).run()
