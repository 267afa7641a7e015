"""Load: clients that store messages as fast as they are answered, and a lock that lets them wait."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Any

import psycopg

from tests.messages import new_id, new_message
from tests.services import KEY, wait_for

HEADERS = {"x-api-key": KEY, "Content-Type": "application/json"}


class Client(threading.Thread):
    """Stores messages one after another on one connection, each until it is acknowledged, until told to end."""

    def __init__(self, service: Any, ending: threading.Event) -> None:
        super().__init__()
        self.ending = ending
        self.connection = HTTPConnection("127.0.0.1", service.port, timeout=60)
        self.connection.connect()
        self.chat_id = new_id()
        self.answers: list[tuple[int, str | None, float]] = []  # status, Retry-After, seconds
        self.stored: list[str] = []
        self.losses: list[str] = []
        self.is_turned_away = False  # by a service that stops

    def run(self) -> None:
        while not self.ending.is_set() and not self.is_turned_away:
            message = new_message(message_id=new_id(), chat_id=self.chat_id)
            while not self.send(message) and not self.is_turned_away and not self.ending.wait(0.05):
                pass
        self.connection.close()

    def send(self, message: dict[str, str]) -> bool:
        began = time.monotonic()
        try:
            self.connection.request("POST", "/messages/", json.dumps(message), HEADERS)
            response = self.connection.getresponse()
            response.read()
        except (OSError, HTTPException) as exc:
            self.losses.append(repr(exc))
            self.connection.close()  # the next request makes another
            return False
        self.answers.append((response.status, response.headers["Retry-After"], time.monotonic() - began))
        self.is_turned_away = response.will_close
        if response.status in (200, 201):
            self.stored.append(message["message_id"])
        return response.status in (200, 201)


class Load:
    """So many clients, at work until the block ends."""

    def __init__(self, service: Any, clients: int = 4) -> None:
        self.service, self.ending = service, threading.Event()
        self.clients = [Client(service, self.ending) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for client in self.clients:
            client.start()
        self.wait_for_more()
        return self

    def __exit__(self, _type: type[BaseException] | None, _exc: object, _traceback: TracebackType | None) -> None:
        self.ending.set()
        for client in self.clients:
            client.join()

    def count(self) -> int:
        return sum(len(client.stored) for client in self.clients)

    def wait_for_more(self, count: int = 20) -> None:
        goal = self.count() + count
        wait_for(lambda: self.count() >= goal, 60, f"{count} more messages")

    def statuses(self) -> set[int]:
        return {status for client in self.clients for status, _, _ in client.answers}

    def losses(self) -> list[str]:
        return [loss for client in self.clients for loss in client.losses]

    def check(self, *, may_fail: bool = True) -> None:
        """Expect each acknowledged message to be stored once, and what each client was told to be right and in time."""
        stored = [message["message_id"] for message in self.service.get("/messages/").json()]
        assert len(stored) == len(set(stored))
        assert {message_id for client in self.clients for message_id in client.stored} <= set(stored)
        assert self.losses() == []
        assert self.statuses() <= ({200, 201, 503} if may_fail else {200, 201})
        for status, retry_after, seconds in (answer for client in self.clients for answer in client.answers):
            assert seconds < 11
            assert retry_after or status != 503


@contextmanager
def locked_messages(database_url: str) -> Iterator[Callable[[], int]]:
    """Let every statement that touches a message wait, 5 s at most, and count those that wait."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'messages'::regclass "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        yield lambda: int((connection.execute(waiting).fetchone() or (0,))[0])
