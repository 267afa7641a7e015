"""What the tests of the chat service share."""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.services import KEY, Service, wait_for

Event = tuple[str, Any]
RunChat = Callable[..., contextlib.AbstractContextManager[Service]]


@contextlib.contextmanager
def running(module: str, folder: Path, *flags: str, **settings: Any) -> Iterator[Service]:
    """A service of one's own, to be spoiled."""
    service = Service(module, folder, *flags, **settings)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


def processes(service: Service) -> list[psutil.Process]:
    """Return its workers, and last their master."""
    return [psutil.Process(pid) for pid in (*service.workers(), service.process.pid)]


def kill(service: Service) -> None:
    """Kill all of its processes, as a machine does that loses its power."""
    for process in reversed(processes(service)):
        process.kill()
    service.process.wait(10)
    service.session.close()
    wait_for(service.is_refused)


def new_turn(content: str, **fields: Any) -> dict[str, Any]:
    """Return a request with all its ids chosen."""
    return {"content": content, "chat_id": str(uuid.uuid4()), "message_id": str(uuid.uuid4())} | fields


def post_turn(chat: Service, turn: dict[str, Any], seconds: float = 180) -> requests.Response:
    """Post in a session of one's own, for use in threads."""
    return requests.post(f"{chat.url}/chat", json=turn, headers={"x-api-key": KEY}, timeout=seconds)


def post_turns(chats: Iterable[Service], turns: Iterable[dict[str, Any]]) -> list[requests.Response]:
    """Post all of them at the same time."""
    with ThreadPoolExecutor(1000) as pool:
        return list(pool.map(post_turn, chats, turns))


def stored(service: Service, turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of the turn's chat from this persistence service, or from the one below this chat service."""
    url = f"{service.store_url}/messages/?chat_id={turn['chat_id']}"
    messages: list[dict[str, Any]] = requests.get(url, headers={"x-api-key": KEY}, timeout=30).json()
    return messages


def events_of(text: str) -> list[Event]:
    """Read a finished stream of server-sent events, whose silences may be filled by pings."""
    assert text.endswith("\n\n")
    return [event_of(part) for part in text.removesuffix("\n\n").split("\n\n") if part != ": ping"]


def event_of(text: str) -> Event:
    """Read one event. (It has two lines: no `id:` and no `retry:`.)"""
    name, data = text.split("\n")
    assert name.startswith("event: ")
    assert data.startswith("data: ")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def answer_of(response: requests.Response) -> list[dict[str, Any]]:
    """Return the message and the reply of a turn, whole or streamed."""
    assert response.status_code == 200, response.text
    if response.headers["Content-Type"].startswith("text/event-stream"):
        events = dict(events_of(response.content.decode()))
        assert list(events) == ["message", "delta", "reply"], events
        return [events["message"], events["reply"]]
    return list(response.json().values())


def error_of(response: requests.Response) -> dict[str, Any]:
    """Return the error of a turn, whole or streamed."""
    if response.headers["Content-Type"].startswith("text/event-stream"):
        (first, _), *_, (last, error) = events_of(response.content.decode())
        assert (first, last) == ("message", "error")
    else:
        error = response.json()
        assert response.status_code == error["code"]
    return dict(error)


def live_events(response: requests.Response) -> Iterator[Event]:
    """Return each event when it arrives."""
    lines = response.iter_lines(chunk_size=1)
    for name in lines:
        if name != b": ping":
            yield event_of(f"{name.decode()}\n{next(lines).decode()}")
        next(lines)


def stream(chat: Service, turn: dict[str, Any]) -> requests.Response:
    """Begin a streamed turn, to be read by `live_events`."""
    headers = {"x-api-key": KEY}
    return requests.post(f"{chat.url}/chat", json=turn | {"stream": True}, headers=headers, timeout=60, stream=True)
