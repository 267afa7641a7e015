"""What the tests of the chat service share."""

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.services import KEY, Service

Events = list[tuple[str, Any]]


@contextlib.contextmanager
def running(module: str, folder: Path, **settings: Any) -> Iterator[Service]:
    """A service of one's own, to be spoiled."""
    service = Service(module, folder, **settings)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


def new_turn(content: str, **fields: Any) -> dict[str, Any]:
    """Give a request with all its ids chosen."""
    return {"content": content, "chat_id": str(uuid.uuid4()), "message_id": str(uuid.uuid4())} | fields


def post_turn(chat: Service, turn: dict[str, Any]) -> requests.Response:
    """Post in a session of one's own, for use in threads."""
    return requests.post(f"{chat.url}/chat", json=turn, headers={"x-api-key": KEY}, timeout=60)


def post_turns(chats: Iterable[Service], turns: Iterable[dict[str, Any]]) -> list[requests.Response]:
    """Post all of them at the same time."""
    with ThreadPoolExecutor(50) as pool:
        return list(pool.map(post_turn, chats, turns))


def stored(persistence: Service, turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the messages of the turn's chat."""
    messages: list[dict[str, Any]] = persistence.get("/messages/", params={"chat_id": turn["chat_id"]}).json()
    return messages


def events_of(text: str) -> Events:
    """Read a finished stream of server-sent events."""
    assert text.endswith("\n\n")
    return [event_of(part) for part in text.removesuffix("\n\n").split("\n\n")]


def event_of(text: str) -> tuple[str, Any]:
    name, data = text.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def live_events(response: requests.Response) -> Iterator[tuple[str, Any]]:
    """Give each event when it arrives."""
    lines = response.iter_lines(chunk_size=1)
    for name in lines:
        yield event_of(f"{name.decode()}\n{next(lines).decode()}")
        next(lines)


def stream(chat: Service, turn: dict[str, Any]) -> requests.Response:
    """Begin a streamed turn, to be read by `live_events`."""
    headers = {"x-api-key": KEY}
    return requests.post(f"{chat.url}/chat", json=turn | {"stream": True}, headers=headers, timeout=30, stream=True)
