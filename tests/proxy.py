"""A network that fails: a TCP proxy that passes connections on, cuts them, or swallows what they carry."""

import contextlib
import socket
import struct
import threading
from collections import deque

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)


class Link:
    """A client's connection and the one behind it."""

    def __init__(self, proxy: "Proxy", client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.ends, self.may_answer = proxy, (client, server), proxy.may_answer
        self.dead = False
        for end in self.ends:
            if end.family == socket.AF_INET:  # what comes in two pieces must not wait for what is read of the first
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self.pump, args=(source, target), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source is self.ends[1]:
                    self.may_answer.wait()
                self.dead = self.dead or self.proxy.swallows
                if not self.dead:
                    target.sendall(data)
        if not self.dead:
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens on `port` of the loopback address; each of `targets` is the path of a Unix socket, or a host and a port.

    The connections go to the targets in turn, past those that refuse. What it `swallows` is lost for good: a connection
    that lost a byte stays dead, and nobody is told. The answers on connections that are made while `may_answer` is
    an event that is not set wait for that event.
    """

    def __init__(self, *targets: str | tuple[str, int]) -> None:
        self.targets = deque(targets)
        self.swallows = False
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.links: list[Link] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                if server := self.connect():
                    self.links.append(Link(self, client, server))
                else:
                    client.close()

    def connect(self) -> socket.socket | None:
        for _ in self.targets.copy():
            target = self.targets[0]
            self.targets.rotate()
            server = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
            try:
                server.connect(target)
            except OSError:
                server.close()
            else:
                return server
        return None

    def cut(self) -> None:
        """Reset all connections."""
        links = self.links[:]
        del self.links[: len(links)]  # in place: another may be appended at the same time, and must not be forgotten
        for link in links:  # all at once: each reset takes its time
            link.dead = True
        for link in links:
            link.reset()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
