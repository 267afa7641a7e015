"""What the log says at a start whose database can't be used."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.messages import new_id
from tests.services import KEY, Service, free_port, wait_for

OLD = {"server_version": "13.23", "default_transaction_read_only": "off", "in_hot_standby": "off"}


def packet(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def greet(client: socket.socket) -> None:
    """Say what a server says to who has connected: it is let in, settings, it is the server's turn no more."""
    settings = [packet(b"S", f"{name}\0{value}\0".encode()) for name, value in OLD.items()]
    client.recv(4096)
    client.sendall(packet(b"R", struct.pack("!i", 0)) + b"".join(settings) + packet(b"Z", b"I"))


@pytest.fixture
def old_server() -> Iterator[int]:
    """The first words of a PostgreSQL that is too old."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                clients.append(listener.accept()[0])
                greet(clients[-1])

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    for end in (listener, *clients):
        end.close()


def test_a_server_that_is_too_old_is_told_once(make_service: Callable[..., Service], old_server: int) -> None:
    url = f"postgresql://u@127.0.0.1:{old_server}/d?sslmode=disable&gssencmode=disable"
    service = make_service("persistence", wait=False, DATABASE_URL=url, API_KEY=KEY, WEB_CONCURRENCY=1)
    wait_for(lambda: service.get("/ready").status_code == 503)
    line = "PostgreSQL 13.23 is too old: it needs 14 or newer"
    wait_for(lambda: line in service.text())
    request_id = new_id()
    service.get("/ready", headers={"X-Request-ID": request_id})
    assert line in service.log(request_id)["reason"]
    assert service.text().count('"level": "warning"') == 1


def test_why_there_is_no_connection_is_told_by_host(make_service: Callable[..., Service]) -> None:
    port = free_port()
    url = f"postgresql://u@127.0.0.1:{port},localhost:{port}/d"
    service = make_service("persistence", wait=False, DATABASE_URL=url, API_KEY=KEY, WEB_CONCURRENCY=1)
    wait_for(lambda: "No connection to the database" in service.text())
    request_id = new_id()
    service.get("/ready", headers={"X-Request-ID": request_id})
    reason = service.log(request_id)["reason"]
    for host in (f"127.0.0.1:{port}: ", f"localhost:{port}: "):
        assert host in reason
    assert reason.count("refused") >= 2
