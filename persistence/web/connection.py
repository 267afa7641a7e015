"""A client's connection, which never blocks, and what of its next request has arrived."""

import contextlib
import fcntl
import re
import select
import socket
import struct
import termios
import time
from typing import Any

from persistence.web.arguments import MAX_BODY_BYTES

MAX_HEAD_BYTES = 64 * 1024
MAX_FRAMING_BYTES = 256 * 1024  # of a chunked request, all but its content: each chunk costs time, however short it is
STALL_SECONDS = 60  # a reader that takes nothing for so long is cut off
_begins_request = re.compile(rb"\r?\Z|[^\x00-\x20a-z\x7f-\xff]{1,20}( |\Z)")  # an empty line may come before its method
_content_length = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n")
_is_chunked = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n")
_expects_continue = re.compile(rb"[^\r\n]* http/1\.1\r\n(.*\r\n)?expect:[ \t]*100-continue[ \t]*\r\n", re.DOTALL)
_chunk_size = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(;.*)?", re.DOTALL)


class ClientSocket(socket.socket):
    """A non-blocking connection; `arrived` is when its present request was there (time.monotonic, in seconds)."""

    arrived = 0.0
    too_large = False

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it. Raises TimeoutError when the reader has taken nothing for STALL_SECONDS."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.send(view, flags) :]
            except BlockingIOError:
                self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        # a socket counts as writable only when a third of its buffer is free, so a slow reader's progress is looked up
        writable = select.poll()
        writable.register(self, select.POLLOUT)
        unsent, moved = self.unsent(), time.monotonic()
        while not writable.poll(1000):
            now, before = time.monotonic(), unsent
            unsent = self.unsent()
            if unsent < before:
                moved = now
            elif now - moved > STALL_SECONDS:
                raise TimeoutError(f"the reader took nothing for {STALL_SECONDS} s")

    def unsent(self) -> int:
        """Give how many bytes the reader has not acknowledged (SIOCOUTQ, tcp(7))."""
        try:
            count: int = struct.unpack("i", fcntl.ioctl(self, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        except OSError:
            return 0
        return count


class Source:
    """What has arrived, for gunicorn's parser, which takes it in pieces, as from a socket."""

    def __init__(self, data: bytes) -> None:
        self.data, self.given = data, 0

    def recv(self, size: int) -> bytes:
        """Give the next bytes. Raises BlockingIOError where there are none."""
        piece = self.data[self.given : self.given + size]
        if not piece:
            raise BlockingIOError
        self.given += len(piece)
        return piece


class Connection:
    """A client's connection, and what of its next request has arrived."""

    def __init__(self, sock: ClientSocket, client: Any, server: Any, deadline: float) -> None:
        self.sock, self.client, self.server = sock, client, server
        self.descriptor = sock.fileno()
        self.parser: Any = None
        self.source = Source(b"")
        self.lingers_until: float | None = None
        self.expect(b"", deadline)

    def expect(self, data: bytes, deadline: float) -> None:
        """Begin a request, of which `data` is here, and which is given up at `deadline`."""
        self.data = bytearray(data)
        self.deadline = deadline
        self.searched = 0  # so far, no head ends in data
        self.end: int | None = None  # where the request ends in data, when that is known
        self.chunk: int | None = None  # where its next chunk begins
        self.body_bytes = 0
        self.whole = False
        self.sock.too_large = False

    def reset(self) -> None:
        """End the connection so that its client sees that something is missing."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # socket(7)
        self.sock.close()

    def is_ready(self) -> bool:
        """Tell whether a thread can take over: all is here, or enough to turn it down."""
        while self.data[:2] == b"\r\n":  # RFC 9112, section 2.2
            del self.data[:2]
            self.searched = 0
        if self.end is None and self.chunk is None and not self._read_head():
            return False
        if self.chunk is not None and not self._read_chunks(self.chunk):
            return self.sock.too_large
        self.whole = self.end is not None and len(self.data) >= self.end
        return self.whole or self.sock.too_large or (self.end is None and self.chunk is None)

    def _read_head(self) -> bool:
        head_end = self.data.find(b"\r\n\r\n", max(0, self.searched - 3))
        if head_end < 0:
            return self._is_no_head()
        head = bytes(self.data[: head_end + 2]).lower()
        body = head_end + 4
        if _is_chunked.search(head):
            self.chunk = body
        elif b"\r\ntransfer-encoding:" not in head:  # with any other, gunicorn says what is wrong with it
            length = _content_length.search(head)
            digits = length[1].lstrip(b"0")[:18] if length else b""  # as many as are surely too large
            self.end = body + int(digits or b"0")
            self.sock.too_large = self.end - body > MAX_BODY_BYTES
        lacks_body = len(self.data) == body and self.end != body and not self.sock.too_large
        if lacks_body and _expects_continue.match(head):
            self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _is_no_head(self) -> bool:
        """Tell whether what is here can't begin a request, so that there is nothing to wait for."""
        new, self.searched = self.searched, len(self.data)
        has_bare_lf = self.data.count(b"\n", new) > self.data.count(b"\r\n", max(0, new - 1))
        return has_bare_lf or not _begins_request.match(self.data[:21])

    def _read_chunks(self, chunk: int) -> bool:
        # RFC 9112, section 7.1; what is malformed is left to gunicorn, which says what is wrong with it
        while (line_end := self.data.find(b"\r\n", chunk, chunk + MAX_HEAD_BYTES)) >= 0:
            size_line = _chunk_size.fullmatch(bytes(self.data[chunk:line_end]))
            if size_line is None:
                self.chunk = None
                return True
            size = int(size_line[1], 16)
            if size == 0:
                trailer_end = self.data.find(b"\r\n\r\n", line_end, line_end + MAX_HEAD_BYTES)
                if trailer_end < 0:
                    return self._has_endless_line(chunk)
                self.end = trailer_end + 4
                return True
            if self.body_bytes + size > MAX_BODY_BYTES:
                self.sock.too_large = True
                return False
            end = line_end + 2 + size
            if len(self.data) < end + 2:
                return False
            if self.data[end : end + 2] != b"\r\n":
                self.chunk = None
                return True
            self.body_bytes += size
            chunk = self.chunk = end + 2
            if chunk - self.body_bytes > MAX_FRAMING_BYTES:
                self.sock.too_large = True
                return False
        return self._has_endless_line(chunk)

    def _has_endless_line(self, chunk: int) -> bool:
        if len(self.data) - chunk > MAX_HEAD_BYTES:
            self.chunk = None
        return self.chunk is None
