"""python -m chat --with-persistence: the whole system on one machine; and Ctrl-C at any moment of every start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chats import new_turn
from tests.services import KEY, ROOT, Service, free_port, wait_for

Start = Callable[..., Service]
pytestmark = pytest.mark.slow


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start systems over one folder; whatever is left of them is killed at the end."""

    def start_one(**settings: Any) -> Service:
        settings = {"API_BASE_URL": f"http://127.0.0.1:{free_port()}", "WEB_CONCURRENCY": 1} | settings
        system = Service("chat", folder, "--with-persistence", "--demo-model", wait=False, **settings)
        stack.callback(system.process.wait)
        stack.callback(system.process.kill)
        wait_for(lambda: "Ready. " in system.text() or system.process.poll() is not None, 120)
        if (key := folder / "secrets" / "api_key.txt").exists():
            system.session.headers["x-api-key"] = key.read_text().strip()
        return system

    with ExitStack() as stack:
        yield start_one
    for process in rest_of(folder):
        process.kill()


def rest_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(folder)):
                found.append(process)
    return found


def part(system: Service, module: str) -> psutil.Process:
    children = psutil.Process(system.process.pid).children()
    return next(child for child in children if child.cmdline()[1:3] == ["-m", module])


@pytest.mark.parametrize("end_signal", [signal.SIGTERM, signal.SIGINT])
def test_it_works_from_one_command_and_stops_with_one_signal(
    start: Start, folder: Path, end_signal: signal.Signals
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"  # a proxy for the way out, which is not asked for what is inside
    api_url = f"http://127.0.0.1:{free_port()}/"
    system = start(API_BASE_URL=f" {api_url} ", HTTP_PROXY=nobody, HTTPS_PROXY=nobody)
    assert all(place in system.text() for place in (f"{system.url}/docs", f"{api_url}docs", "secrets/api_key.txt"))
    assert str(system.session.headers["x-api-key"]) not in system.text()
    turn = new_turn("hello")
    response = system.post("/chat", json=turn)
    assert "says: hello" in response.json()["reply"]["content"]
    assert system.stop(end_signal) == 0
    wait_for(lambda: rest_of(folder) == [], what="the end of all processes")
    assert "Traceback" not in system.text()
    assert '"level": "error"' not in system.text()

    messages = start().get(f"/chat/{turn['chat_id']}").json()
    assert messages == list(response.json().values())


@pytest.mark.parametrize("module", ["persistence", "chat"])
def test_a_killed_part_stops_the_others(start: Start, folder: Path, module: str) -> None:
    system = start()
    others = {part(system, name) for name in ("persistence", "chat") if name != module}
    part(system, module).kill()
    assert system.process.wait(60) == 1
    assert f"chat: {module} has ended, so the others were stopped\n" in system.text()
    wait_for(lambda: not others & set(rest_of(folder)), what="the end of the others")


def test_parts_do_not_know_each_others_secrets(start: Start) -> None:
    system = start(API_KEY="key-of-persistence", OPENAI_API_KEY="key-of-chat")
    assert "key-of-persistence" not in json.dumps(part(system, "chat").environ())
    assert "key-of-chat" not in json.dumps(part(system, "persistence").environ())


@pytest.mark.parametrize("flags", ["chat --with-persistence --demo-model", "persistence", "chat"])
def test_ctrl_c_ends_every_start_at_any_moment(folder: Path, flags: str) -> None:
    """A terminal sends it to the whole process group; the launcher's parts are in groups of their own."""
    for delay in [number / 20 for number in range(2, 22)] + [1.5, 2.0, 2.5]:
        env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "PORT": str(free_port())}
        env["API_BASE_URL"] = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", *flags.split()]
        process = subprocess.Popen(
            command, env=env, cwd=folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        time.sleep(delay)  # the moment is what this is about
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGINT), (delay, output)
        assert b"Traceback" not in output, (delay, output)
        wait_for(lambda: rest_of(folder) == [], what=f"the end of all processes after {delay} s")
    if flags != "chat":
        assert Service("persistence", folder, API_KEY=KEY).stop() == 0
