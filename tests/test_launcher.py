"""python -m chat --with-persistence: the whole system on one machine, with a stand-in for the model."""

import contextlib
import json
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.services import Service, free_port, wait_for

Start = Callable[..., Service]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts systems over one folder; whatever is left of them is killed at the end."""
    systems: list[Service] = []
    processes: list[psutil.Process] = []

    def start_one(**settings: Any) -> Service:
        settings.setdefault("API_BASE_URL", f"http://127.0.0.1:{free_port()}")
        system = Service(
            "chat", folder, "--with-persistence", "--demo-model", wait=False, WEB_CONCURRENCY=1, THREADS=4, **settings
        )
        systems.append(system)
        wait_for(lambda: "Ready. " in system.text() or system.process.poll() is not None, 30)
        processes.extend(parts(system))
        key = folder / "secrets" / "api_key.txt"
        if key.exists():
            system.session.headers["x-api-key"] = key.read_text().strip()
        return system

    yield start_one
    for system in systems:
        system.process.kill()
        system.process.wait()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def parts(system: Service) -> list[psutil.Process]:
    """Give all processes of a system, the launcher first."""
    if system.process.poll() is not None:
        return []
    launcher = psutil.Process(system.process.pid)
    return [launcher, *launcher.children(recursive=True)]


def part(system: Service, module: str) -> psutil.Process:
    children = psutil.Process(system.process.pid).children()
    return next(child for child in children if child.cmdline()[1:3] == ["-m", module])


def have_ended(processes: list[psutil.Process]) -> bool:
    """Tell whether all have; a zombie has: it only waits for an init that collects orphans."""
    return all(not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes)


def say(system: Service, content: str, chat_id: str) -> str:
    response = system.post("/chat", json={"content": content, "chat_id": chat_id})
    assert response.status_code == 200, response.text
    reply: str = response.json()["reply"]["content"]
    return reply


@pytest.mark.slow
def test_a_proxy_for_the_way_out_is_not_asked_for_what_is_inside(start: Start) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    system = start(HTTP_PROXY=nobody, HTTPS_PROXY=nobody)
    assert "hello" in say(system, "hello", str(uuid.uuid4()))


@pytest.mark.slow
def test_it_works_from_one_command_and_keeps_what_was_said(start: Start, folder: Path) -> None:
    chat_id = str(uuid.uuid4())
    api_url = f"http://127.0.0.1:{free_port()}/"
    system = start(API_BASE_URL=f" {api_url} ")
    for place in (f"{system.url}/docs", f"{api_url}docs", "secrets/api_key.txt"):
        assert place in system.text(), system.text()
    assert str(system.session.headers["x-api-key"]) not in system.text()
    assert "says: hello" in say(system, "hello", chat_id)
    processes = parts(system)
    assert system.stop() == 0
    wait_for(lambda: have_ended(processes), 2, "the end of all parts")

    again = start()
    messages = again.get(f"/chat/{chat_id}").json()
    assert [message["role"] for message in messages] == ["human", "ai"]


@pytest.mark.slow
def test_ctrl_c_stops_all_in_order(start: Start) -> None:
    system = start()
    processes = parts(system)
    group = os.getpgid(system.process.pid)
    assert [one.pid for one in processes if os.getpgid(one.pid) == group] == [system.process.pid]
    assert system.stop(signal.SIGINT) == 0
    wait_for(lambda: have_ended(processes), 2, "the end of all parts")
    assert "Traceback" not in system.text()


@pytest.mark.slow
def test_a_stop_while_it_starts(folder: Path) -> None:
    system = Service(
        "chat",
        folder,
        "--with-persistence",
        "--demo-model",
        wait=False,
        API_BASE_URL=f"http://127.0.0.1:{free_port()}",
    )
    wait_for(lambda: (folder / ".data").exists())
    processes = parts(system)
    assert system.stop() == 0
    wait_for(lambda: have_ended(processes), 5, "the end of all parts")
    assert "Traceback" not in system.text()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["persistence", "chat"])
def test_a_killed_part_stops_the_others(start: Start, module: str) -> None:
    system = start()
    processes = parts(system)
    part(system, module).kill()
    assert system.process.wait(20) == 1
    assert f"chat: {module} has ended with status -9; stopping the others\n" in system.text()
    wait_for(lambda: have_ended(processes), 5, "the end of all parts")


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_behind(start: Start) -> None:
    system = start()
    processes = parts(system)
    assert len(processes) > 5
    system.process.kill()
    system.process.wait()
    wait_for(lambda: have_ended(processes), 10, "the end of all parts")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat", "persistence"])
def test_a_taken_port_is_one_clear_line(start: Start, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = {"PORT": port} if name == "chat" else {"API_BASE_URL": f"http://127.0.0.1:{port}"}
        system = start(**taken)
    assert system.process.wait(10) == 1, system.text()
    lines = [line for line in system.text().splitlines() if "API key" not in line]
    assert lines[0] == f"{name}: PORT: can't listen on 127.0.0.1:{port}: Address already in use"
    assert lines[1:] == ([] if name == "chat" else ["chat: persistence has ended with status 1; stopping the others"])


@pytest.mark.slow
def test_parts_do_not_know_each_others_secrets(start: Start) -> None:
    system = start(API_KEY="key-of-persistence", OPENAI_API_KEY="key-of-chat")
    chat = part(system, "chat").environ()
    persistence = part(system, "persistence").environ()
    assert "key-of-persistence" not in json.dumps(chat)
    assert "key-of-chat" not in json.dumps(persistence)
    assert persistence["API_KEY"] == "key-of-persistence"
