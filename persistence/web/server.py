"""gunicorn with its gevent worker, set up for both services: its options, its port, and how it stops."""

import contextlib
import errno
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from persistence.web.env import ServerSettings, SettingsError
from persistence.web.worker import Worker, guard


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
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


def check_port(settings: ServerSettings) -> None:
    """Raise SettingsError if the address can't be listened on.

    The workers listen with SO_REUSEPORT, so that a second start on the same port would succeed, and another program's
    port make them die for ever. So it is tried once without that option.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as exc:
        name = "PORT" if exc.errno in (errno.EADDRINUSE, errno.EACCES) else "HOST"
        reason = str(exc.strerror).partition(" (while")[0]  # create_server repeats the address
        raise SettingsError(f"{name}: can't listen on {settings.address}: {reason}") from None


def _begin(arbiter: Any) -> None:
    """Let in the signals that the start held back, now that gunicorn handles them; Ctrl-C is like SIGTERM."""
    arbiter.handle_int = arbiter.handle_term
    arbiter.log.error_log.propagate = True  # to the root logger, which writes JSON
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


def serve(create_app: Callable[[], Flask], settings: ServerSettings, connections: int) -> None:
    """Serve the app until SIGTERM or Ctrl-C, which may be blocked until now; then the process exits.

    A worker takes `connections` at most. A stop gives `graceful_timeout` seconds to requests, and to what the app's
    extension `is_busy`, a function, says is under way.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # many a start gives 1,024 open files or fewer
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    shared_memory = "/dev/shm"  # noqa: S108  # gunicorn makes its own file there, which nobody else can name
    options = {
        "bind": settings.address,
        "workers": settings.workers,
        "worker_class": Worker,
        "worker_connections": connections,
        "worker_tmp_dir": shared_memory if Path(shared_memory).is_dir() else None,  # no heartbeat waits for a disk
        "reuse_port": True,  # with one shared socket, the worker that wakes first takes most connections
        "graceful_timeout": settings.graceful_timeout,
        "keepalive": 5,  # seconds for the head of the next request; clients reconnect
        "control_socket_disable": True,
        "forwarded_allow_ips": "",  # nobody's word changes where the app thinks it is
        "sendfile": False,  # it refuses sockets that do not block
        "errorlog": None,
        "loglevel": "warning",
        "when_ready": _begin,
    }
    Server(create_app, options).run()
