"""gunicorn's gevent worker, and what of HTTP it leaves to us: bodies that do not come, and those that break off."""

import contextlib
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
from gevent import monkey
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import ParseException
from gunicorn.workers.ggevent import GeventWorker
from werkzeug.exceptions import BadRequest, RequestTimeout

READ_BYTES = 4096
SLOW_SECONDS = 0.005
BODY_SECONDS = 20  # from a body's first byte to its last
STALL_SECONDS = 60  # a reader that takes nothing for so long is cut off
LOOK_SECONDS = 0.1  # between two looks for a stop
LINGER_SECONDS = 1.0  # for the request that is on its way when a stop begins


class Body:
    """A request's body, as WSGI has it: 408 if it does not come in time, 400 if it is malformed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._end: float | None = None
        self._is_slow = False

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most `size` and READ_BYTES of them; none at the end."""
        if self._end is None:
            self._end = time.monotonic() + BODY_SECONDS
        elif self._is_slow:
            gevent.sleep(0.001)  # a body in many tiny chunks costs time; a timer lets all others run before the next
        try:
            with gevent.Timeout(self._end - time.monotonic(), RequestTimeout()):
                began = time.monotonic()
                data: bytes = self._stream.read(min(size, READ_BYTES) if size > 0 else READ_BYTES)
                self._is_slow = time.monotonic() - began > SLOW_SECONDS
                return data
        except ParseException as exc:
            raise BadRequest from exc


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker, which at a stop waits for what the app has under way, but for no idle connection."""

    def init_signals(self) -> None:
        """Leave Ctrl-C, which a terminal sends to every process, to the master."""
        self.idle: dict[Any, gevent.Timeout] = {}
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def patch(self) -> None:
        """Patch all but `select.poll`, by which HTTP clients look, without a wait, if an idle connection is closed.

        gevent's lets all other greenlets run before it answers. Nothing here waits by it: psycopg has our own wait.
        """
        super().patch()
        select.poll = monkey.get_original("select", "poll")  # type: ignore[misc]

    def run(self) -> None:
        """Serve until told to stop; then answer what has been read, and wait for what the app still does.

        gunicorn's own looks for a stop once a second, and drops connections that nobody has accepted yet.
        """
        (listener,) = self.sockets
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # tcp(7): connections inherit it; Linux has it, others do not
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_SECONDS * 1000)
        pool = Pool(self.worker_connections)
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool)
        server.start()
        while self.alive:
            self.notify()
            gevent.sleep(LOOK_SECONDS)
        server.stop_accepting()
        while (accepted := server.do_read()) is not None:
            server.do_handle(*accepted)
        gevent.sleep(0)  # each of them begins with a look at the listener
        server.close()
        closer = gevent.get_hub().loop.timer(LINGER_SECONDS)
        closer.start(self.close_idle)
        end = time.monotonic() + self.cfg.graceful_timeout
        while (len(pool) or self.wsgi.extensions.get("is_busy", bool)()) and time.monotonic() < end:
            self.notify()
            gevent.sleep(LOOK_SECONDS)

    def close_idle(self) -> None:
        """End each wait for a request's head, as its own timeout would: in the hub, from where this is called."""
        for greenlet, timeout in list(self.idle.items()):
            if greenlet in self.idle:
                greenlet.throw(timeout)

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Limit the wait for the head of a request."""
        with gevent.Timeout(self.cfg.keepalive if self.alive else LINGER_SECONDS, False) as timeout:
            self.idle[gevent.getcurrent()] = timeout
            try:
                yield
            finally:
                del self.idle[gevent.getcurrent()]


def guard(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the WSGI app `answer` with a limit for bodies that do not come, and a reset for those that break off."""

    def guarded(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"] = Body(environ["wsgi.input"])
        body = answer(environ, start_response)
        return _framed(body, environ) if environ["SERVER_PROTOCOL"] == "HTTP/1.0" else body

    return guarded


def _framed(body: Any, environ: dict[str, Any]) -> Iterator[bytes]:
    """Return the pieces of a body whose end is that of the connection, and reset the connection if there are not all.

    HTTP/1.0, which proxies speak too, has no chunks: a proper close would pass off a part as the whole.
    """
    try:
        yield from body
    except Exception:  # whatever it is, what has been sent is not all
        sock = environ["gunicorn.socket"]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # socket(7)
        sock.close()
        raise
    finally:
        body.close()
