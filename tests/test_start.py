"""What the log says at a start whose database can't be used."""

import struct
import threading
from collections.abc import Callable, Iterator
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from tests.messages import new_id
from tests.services import KEY, Service, free_port, wait_for


def packet(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


# it is let in; the settings; it is its turn
SETTINGS = (b"server_version\x0013.23\0", b"default_transaction_read_only\0off\0", b"in_hot_standby\0off\0")
GREETING = packet(b"R", bytes(4)) + b"".join(packet(b"S", setting) for setting in SETTINGS) + packet(b"Z", b"I")


class OldServer(BaseRequestHandler):
    """The first words of a PostgreSQL that is too old."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(GREETING)
        self.request.recv(4096)


@pytest.fixture
def old_server() -> Iterator[int]:
    with ThreadingTCPServer(("127.0.0.1", 0), OldServer) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def reason(service: Service) -> str:
    """Return what the log gives as the reason for not being ready."""
    request_id = new_id()
    assert service.get("/ready", headers={"X-Request-ID": request_id}).status_code == 503
    return str(service.log(request_id)["reason"])


def test_a_server_that_is_too_old_is_told_once(make_service: Callable[..., Service], old_server: int) -> None:
    url = f"postgresql://u@127.0.0.1:{old_server}/d?sslmode=disable&gssencmode=disable"
    service = make_service("persistence", wait=False, DATABASE_URL=url, API_KEY=KEY, WEB_CONCURRENCY=1)
    line = "PostgreSQL 13.23 is too old: it needs 14 or newer"
    wait_for(lambda: line in service.text())
    assert line in wait_for(lambda: reason(service))
    assert service.text().count('"level": "warning"') == 1


def test_why_there_is_no_connection_is_told_by_host(make_service: Callable[..., Service]) -> None:
    port = free_port()
    url = f"postgresql://u@127.0.0.1:{port},localhost:{port}/d"
    service = make_service("persistence", wait=False, DATABASE_URL=url, API_KEY=KEY, WEB_CONCURRENCY=1)
    wait_for(lambda: "No connection to the database" in service.text())
    given = wait_for(lambda: reason(service))
    assert f"127.0.0.1:{port}: " in given
    assert f"localhost:{port}: " in given
    assert given.count("refused") >= 2
