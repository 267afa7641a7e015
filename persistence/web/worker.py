"""gunicorn's threaded worker with a front of its own: a thread answers a request only when all of it has arrived.

gunicorn's threads read blockingly, so a few dozen slow clients could hold all of them; its stopping worker keeps its
listening socket, so new connections hang; it closes connections in its main loop, for up to 2 s each; and it hands each
request from that loop to a thread and back, which costs as much as answering it. Here the threads wait for clients
themselves, at one epoll, and read without blocking.
"""

import contextlib
import errno
import functools
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from types import SimpleNamespace
from typing import Any

from gunicorn import http, util
from gunicorn.http import wsgi
from gunicorn.workers.gthread import ThreadWorker

from persistence.web import process
from persistence.web.connection import MAX_HEAD_BYTES, ClientSocket, Connection, Source

ARRIVAL_SECONDS = 20  # from a request's first byte to its last
PAUSE_SECONDS = 0.25  # where no more connections can be accepted, though they come
LINGER_SECONDS = 2  # of silence from a client that was told its last, and for a request on its way when a stop begins
SPARE_THREADS = 4  # which wait for something to read, however many answer
MAX_SHORT_REQUESTS = 32  # that are answered at a time, beside the others
MAX_UNREAD_BYTES = 8 * 1024  # of answers; who reads no more of them gets no answer to what he sent in advance
# A thread that waits for Python's lock wakes up this often to ask for it. With 500 streams a process and the usual 5 ms
# most of the time went into that; what threads do here is short, or lets the lock go by itself.
SWITCH_SECONDS = 0.1
SHORT_REQUESTS = (b"GET /health", b"GET /ready", b"HEAD /health", b"HEAD /ready")


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's response, whose head leaves in one packet with what follows it."""

    head = b""
    headers_sent: bool

    def send_headers(self) -> None:
        """Make the head, to be sent with the first piece of the body."""
        if self.headers_sent:
            return
        major, minor = self.req.version
        lines = [
            f"HTTP/{major}.{minor} {self.status}",
            f"Date: {_http_date(int(time.time()))}",
            f"Connection: {'close' if self.should_close() else 'keep-alive'}",
            *(["Transfer-Encoding: chunked"] if self.chunked else []),
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        self.head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        self.headers_sent = True

    def close(self) -> None:
        """Send what is left: the end of a chunked body, or a head that no body followed."""
        self.send_headers()
        if self.chunked or self.head:
            self._emit_body(b"")

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            data = b"%X\r\n%b\r\n" % (len(data), data)
        head, self.head = self.head, b""
        self.sock.sendall(head + data)


@functools.lru_cache(1)
def _http_date(second: int) -> str:
    date: str = util.http_date(second)
    return date


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """One process: the main thread accepts; all others wait for requests at one epoll, read them and answer them.

    The kernel wakes one thread for what a client sends, so that nothing is handed from thread to thread. `threads` of
    them may answer at a time, in the order of arrival; a few more always read on, and answer /health and /ready.
    """

    def init_process(self) -> None:
        """Run, until told to stop, or until the master is gone, however it ended."""
        process.end_with_parent(signal.SIGTERM, self.ppid)
        sys.setswitchinterval(SWITCH_SECONDS)
        self.epoll = select.epoll()
        self.connections: set[Connection] = set()
        self.waiting: dict[int, Connection] = {}  # by file descriptor; who takes one out owns it
        self.backlog: deque[Connection] = deque()  # whose request is there
        self.busy: deque[None] = deque()  # as many as there are threads that answer
        self.permits: deque[None] = deque([None] * self.cfg.threads)  # to answer what may take long
        self.thread_count = 0
        self.next_look = self.accepts_again = 0.0
        # gunicorn looks at a dozen settings for each request, and at each in two steps; here they are attributes
        self.settings = SimpleNamespace(**{name: setting.get() for name, setting in self.cfg.settings.items()})
        self.settings.is_ssl = False
        self.settings.forwarded_allow_networks = self.cfg.forwarded_allow_networks
        super().init_process()

    def init_signals(self) -> None:
        """Leave Ctrl-C, which a terminal sends to every process, to the master."""
        super().init_signals()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def run(self) -> None:
        """Serve; then stop listening at once, and end when what had been read is answered."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        for _ in range(SPARE_THREADS):
            self.add_thread()
        while self.alive and self.is_parent_alive():
            self.notify()
            is_full = len(self.connections) >= self.worker_connections
            self.set_accept_enabled(not is_full and time.monotonic() >= self.accepts_again)
            self.wait_for_and_dispatch_events(timeout=1.0 if self._accepting else 0.1)
            self.expire()
        self.alive: bool = False
        self.stop_listening()
        end = time.monotonic() + self.cfg.graceful_timeout
        while self.connections and time.monotonic() < end:
            self.notify()
            self.wait_for_and_dispatch_events(timeout=0.1)
            self.expire()

    def stop_listening(self) -> None:
        """Take the connections that the kernel has accepted already, then refuse new ones."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            self.accept(listener)
            listener.close()

    def accept(self, listener: Any) -> None:
        """Take all new connections."""
        while len(self.connections) < self.worker_connections or not self.alive:
            try:
                sock, client = listener.accept()
            except OSError as exc:  # there are no more, or this one has gone, or there is no room for it
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.accepts_again = time.monotonic() + PAUSE_SECONDS
                return
            sock = ClientSocket(fileno=sock.detach())
            sock.setblocking(False)
            connection = Connection(sock, client, listener.getsockname(), self.after(self.cfg.keepalive))
            self.connections.add(connection)
            self.waiting[connection.descriptor] = connection
            self.epoll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)

    def expire(self) -> None:
        """Close what has been waited for too long; looks a few times a second at most."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + 0.25
        for descriptor in list(self.waiting):
            connection = self.waiting.get(descriptor)
            if connection is None:
                continue
            if not self.alive:
                connection.deadline = min(connection.deadline, now + LINGER_SECONDS)
            if connection.deadline < now and self.waiting.pop(descriptor, None) is not None:
                if connection.deadline >= now:  # it spoke just now
                    self.wait(connection)
                elif connection.data and connection.lingers_until is None:
                    self.turn_down(connection, 408, "Request Timeout")
                else:
                    self.drop(connection)

    def add_thread(self) -> None:
        """Start one more thread, which lives as long as the process."""
        threading.Thread(target=self.work, name=f"requests-{self.thread_count}", daemon=True).start()
        self.thread_count += 1

    def work(self) -> None:
        """Wait for something to read, and do what it asks for; all that a thread ever does."""
        while True:
            for descriptor, _ in self.epoll.poll(maxevents=1):
                connection = self.waiting.pop(descriptor, None)
                if connection is not None:  # else it has just expired
                    try:
                        self.read(connection)
                    except Exception:  # whatever it is: without its threads, the process would go on and do nothing
                        self.log.exception("A connection can't be read")
                        self.drop(connection)
                    self.answer()

    def wait(self, connection: Connection) -> None:
        """Let a thread be woken when there is something to read."""
        self.waiting[connection.descriptor] = connection
        with contextlib.suppress(OSError):  # it has just expired
            self.epoll.modify(connection.descriptor, select.EPOLLIN | select.EPOLLONESHOT)

    def after(self, seconds: float) -> float:
        """Give the deadline of what a client may take so many seconds for; in a worker that stops, fewer."""
        return time.monotonic() + (seconds if self.alive else LINGER_SECONDS)

    def read(self, connection: Connection) -> None:
        """Take what the client has sent, and go on with it."""
        try:
            received = connection.sock.recv(64 * 1024)
        except BlockingIOError:
            self.wait(connection)
            return
        except OSError:
            received = b""
        if not received:
            self.drop(connection)
        elif connection.lingers_until is not None:
            connection.deadline = min(connection.lingers_until, time.monotonic() + LINGER_SECONDS)
            self.wait(connection)
        else:
            if not connection.data and received.strip(b"\r\n"):
                connection.deadline = self.after(ARRIVAL_SECONDS)
            connection.data += received
            is_short = connection.data.startswith(SHORT_REQUESTS)
            if self.advance(connection):
                if is_short:
                    self.respond(connection)
                else:
                    self.backlog.append(connection)

    def advance(self, connection: Connection) -> bool:
        """Tell whether the request is there; if not, wait for the rest, or turn down what is not going to be one."""
        try:
            if connection.is_ready():
                connection.sock.arrived = time.monotonic()
                return True
        except OSError:
            self.drop(connection)
            return False
        if connection.end is None and connection.chunk is None and len(connection.data) > MAX_HEAD_BYTES:
            self.turn_down(connection, 431, "Request Header Fields Too Large")
        else:
            self.wait(connection)
        return False

    def answer(self) -> None:
        """Answer what is in the backlog, as far as there are permits; who returns one looks again."""
        while self.backlog:
            try:
                self.permits.pop()
            except IndexError:
                return
            connection = None
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = self.backlog.popleft()
            try:
                if connection is not None:
                    self.respond(connection)
            finally:
                self.permits.append(None)

    def turn_down(self, connection: Connection, status: int, reason: str) -> None:
        """Answer with a bare status, and close."""
        answer = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        with contextlib.suppress(OSError):
            connection.sock.send(answer.encode())
        self.close(connection)

    def drop(self, connection: Connection) -> None:
        """Close at once."""
        self.connections.discard(connection)
        connection.sock.close()

    def close(self, connection: Connection) -> None:
        """Close a connection when its client has read the response; until then, what it still sends is thrown away.

        A close with bytes unread would reset the connection, and with it the response (RFC 9112, section 9.6).
        """
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone, or was cut off already
            self.drop(connection)
            return
        connection.lingers_until = self.after(ARRIVAL_SECONDS)
        connection.deadline = time.monotonic() + LINGER_SECONDS
        self.wait(connection)

    def respond(self, connection: Connection) -> None:
        """Answer the request that is there; then wait for the next one, or close."""
        self.busy.append(None)
        try:
            if self.thread_count < min(len(self.busy), self.cfg.threads + MAX_SHORT_REQUESTS) + SPARE_THREADS:
                with contextlib.suppress(RuntimeError):  # there can be no more
                    self.add_thread()
            if self.handle(connection):
                self.go_on(connection)
            else:
                self.close(connection)
        except Exception:  # whatever it is: the others in the backlog must not wait for ever
            self.log.exception("A connection failed")
            self.drop(connection)
        finally:
            self.busy.pop()

    def go_on(self, connection: Connection) -> None:
        """Wait for the next request, or put it in the backlog, if it has come with the one before."""
        source = connection.source
        rest = connection.parser.unreader.take_buffered() + source.data[source.given :]
        connection.expect(rest, self.after(ARRIVAL_SECONDS if rest else self.cfg.keepalive))
        if not rest:
            self.wait(connection)
        elif connection.sock.unsent() > MAX_UNREAD_BYTES:
            self.close(connection)
        elif self.advance(connection):
            self.backlog.append(connection)

    def handle(self, connection: Connection) -> bool:
        """Answer a request. True: the connection can be used again."""
        request = None
        try:
            connection.source = Source(bytes(connection.data))
            connection.parser = http.get_parser(self.settings, connection.source, connection.client)
            request = next(connection.parser)
            request._expected_100_continue = False  # was answered while the body was waited for
            if not connection.whole or not self.alive:
                request.force_close()
            return self.handle_request(request, connection) and self.is_finished(connection)
        except (BlockingIOError, http.errors.UnsupportedTransferCoding):
            # gunicorn sees less in these bytes than there should be, or would answer 501
            with contextlib.suppress(OSError):
                util.write_error(connection.sock, 400, "Bad Request", "")
        except (OSError, StopIteration, http.errors.NoMoreData) as exc:
            self.log.debug("the connection ended: %s", exc)
        except Exception as exc:  # gunicorn's own rule: the client gets an answer, and the log the cause
            self.handle_error(request, connection.sock, connection.client, exc)
        return False

    def handle_request(self, request: Any, connection: Connection) -> bool:
        """Run the app. True: it is answered, and the connection may be used again."""
        response, environ = wsgi.create(
            request, connection.sock, connection.client, connection.server, self.settings, response_class=Response
        )
        environ["wsgi.multithread"] = True
        body = self.wsgi(environ, response.start_response)
        try:
            for piece in body:
                response.write(piece)
            response.close()
        except Exception as exc:  # whatever it is: a response that has begun can only be cut
            if not response.headers_sent:
                raise
            if not response.chunked:  # with no chunks, a proper end would make a whole of it
                connection.reset()
            if isinstance(exc, OSError):
                raise
            self.log.exception("A response was cut")
            return False
        finally:
            if hasattr(body, "close"):
                body.close()
        return not response.should_close()

    def is_finished(self, connection: Connection) -> bool:
        """Tell whether the request that was answered is well-formed to its end, where the next one begins."""
        try:
            return connection.whole and bool(connection.parser.finish_body())
        except Exception:  # it is answered, so what is wrong with it is not worth a word
            return False
