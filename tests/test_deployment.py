"""docker compose, for real: run where a Docker Engine answers."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.chats import live_events, new_turn
from tests.load import Load
from tests.services import KEY, ROOT, free_port, wait_for

PARTS = ("db", "app", "chat")
MODEL = """
services:
  model:
    image: python:3.13-slim
    command: [python, -c, "import threading; from tests.fake_openai import FakeOpenAI;
      FakeOpenAI(('0.0.0.0', 8080)); threading.Event().wait()"]
    working_dir: /code
    init: true
    stop_grace_period: 1s
    volumes: [".:/code:ro"]
    networks: [services]
"""


pytestmark = pytest.mark.slow


class Deployment:
    """A compose project of its own, from a copy of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"test{uuid.uuid4().hex[:8]}"
        self.port, self.chat_port = free_port(), free_port()
        for name in ("Dockerfile", "Dockerfile.chat", ".dockerignore", "docker-compose.yaml"):
            shutil.copy(ROOT / name, folder)
        for name in ("persistence", "chat", "sql", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "secrets").mkdir()
        shutil.copy(ROOT / "secrets" / "init.sh", folder / "secrets")
        (folder / "secrets" / "api_key.txt").write_text(f"{KEY}\n")
        (folder / "model.yaml").write_text(MODEL)
        self.configure()
        subprocess.run(["sh", "secrets/init.sh"], cwd=folder, check=True, capture_output=True)
        self.secrets = {path.name: path.read_text().strip() for path in (folder / "secrets").glob("*.txt")}

    def compose(self, *arguments: str) -> str:
        files = ["-f", "docker-compose.yaml", "-f", "model.yaml"]
        return docker("compose", "-p", self.name, *files, *arguments, cwd=self.folder)

    def configure(self, **settings: str) -> None:
        own = {"APP_PORT": self.port, "CHAT_PORT": self.chat_port, "OPENAI_BASE_URL": "http://model:8080/v1"}
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in (own | settings).items()))

    def container(self, part: str) -> str:
        return f"{self.name}-{part}-1"

    def python(self, part: str, code: str, *arguments: str) -> str:
        """Run code in a container of the deployment, and return what it prints."""
        return docker("exec", self.container(part), "python", "-c", code, *arguments)

    def inspect(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container(part)))[0]
        return found

    def wait_until_healthy(self) -> None:
        for part in PARTS:
            wait_for(lambda part=part: self.inspect(part)["State"]["Health"]["Status"] == "healthy", 120, part)  # type: ignore[misc]

    def get(self, path: str, /) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers={"x-api-key": KEY}, timeout=30)

    def say(self, content: str, **fields: Any) -> requests.Response:
        turn, is_stream = new_turn(content, **fields), bool(fields.get("stream"))
        url, headers = f"http://127.0.0.1:{self.chat_port}/chat", {"x-api-key": KEY}
        return requests.post(url, json=turn, headers=headers, timeout=90, stream=is_stream)

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/messages/").json()
        return found


def docker(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(["docker", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    look = ["sh", "-c", "docker info && docker compose version"]
    if subprocess.run(look, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("no Docker Engine with Compose answers")
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        made.compose("up", "--build", "-d", "--quiet-pull")
        made.wait_until_healthy()
        yield made
    finally:
        made.compose("down", "--volumes", "--rmi", "local", "--timeout", "5")


def test_a_turn_over_the_published_ports(deployment: Deployment) -> None:
    turn = deployment.say("hello").json()
    assert turn["reply"]["content"] == "reply to hello"
    assert all(message in deployment.messages() for message in turn.values())


@pytest.mark.parametrize(("part", "user"), [("db", "999:999"), ("app", "service"), ("chat", "service")])
def test_containers_are_hardened(deployment: Deployment, part: str, user: str) -> None:
    found = deployment.inspect(part)
    host, bound = found["HostConfig"], found["HostConfig"]["PortBindings"].values()
    assert (found["Config"]["User"], host["ReadonlyRootfs"], host["CapDrop"]) == (user, True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert min(host["Memory"], host["PidsLimit"]) > 0
    assert all(binding["HostIp"] == "127.0.0.1" for ports in bound for binding in ports)
    assert all(not mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind")


@pytest.mark.parametrize("part", PARTS)
def test_no_secret_shows(deployment: Deployment, part: str) -> None:
    name = deployment.container(part)
    seen = docker("inspect", name) + docker("history", "--no-trunc", deployment.inspect(part)["Image"])
    seen += docker("logs", name) + docker("top", name)
    assert not [name for name, secret in deployment.secrets.items() if secret and secret in seen]


def test_only_app_reaches_the_database(deployment: Deployment) -> None:
    look = "import socket; socket.getaddrinfo('db', 5432)"
    deployment.python("app", look)
    with pytest.raises(AssertionError, match="gaierror"):
        deployment.python("chat", look)


def test_images_carry_only_their_own(deployment: Deployment) -> None:
    look = "import importlib.util, os, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]), *os.listdir())"
    names = ["psycopg", "openai", "pytest", "tests", "persistence.database"]
    app, chat = (set(deployment.python(part, look, *names).split()) for part in ("app", "chat"))
    assert app == {"psycopg", "persistence.database", "persistence", "sql", "requirements.txt"}
    assert chat == {"openai", "persistence", "chat", "requirements.txt"}
    assert deployment.python("chat", look, "chat.demo_model").split().count("chat.demo_model") == 0


ATTEMPT = """
import psycopg, sys
from persistence.settings import Settings
url = "postgresql://persistence@db/messages"
psycopg.connect(url, password=Settings().db_password, autocommit=True).execute(sys.argv[1])
"""


def test_the_role_can_do_nothing_outside_its_schema(deployment: Deployment) -> None:
    deployment.python("app", ATTEMPT, "SELECT count(*) FROM messages")
    for statement in (
        "CREATE TABLE public.stray (a int)",
        "CREATE SCHEMA stray",
        "CREATE ROLE stray",
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT * FROM pg_authid",
    ):
        with pytest.raises(AssertionError, match="permission denied"):
            deployment.python("app", ATTEMPT, statement)


def test_a_restart_of_the_database_loses_nothing(deployment: Deployment) -> None:
    with Load(deployment) as load:
        deployment.compose("restart", "db")
        deployment.wait_until_healthy()
        load.wait_for_more()
    load.check()


def test_killed_services_come_back_by_themselves(deployment: Deployment) -> None:
    # not by `docker kill`, which counts as a stop by hand, after which no restart policy applies
    for part in ("app", "chat"):
        container = deployment.container(part)
        subprocess.run(["docker", "exec", container, "python", "-c", "import os; os.kill(-1, 9)"], capture_output=True)
        wait_for(lambda part=part: deployment.inspect(part)["RestartCount"] > 0, 60, f"{part}'s restart")  # type: ignore[misc]
    deployment.wait_until_healthy()
    assert deployment.say("again").status_code == 200


def test_a_stop_waits_for_a_model_that_thinks_for_long(deployment: Deployment) -> None:
    with deployment.say("fault: wait 70, say done, finish stop", stream=True) as response, ThreadPoolExecutor() as pool:
        events = live_events(response)
        assert next(events)[0] == "message"
        stopping = pool.submit(deployment.compose, "stop", "chat")
        *_, (name, reply) = events
        stopping.result()
    assert (name, reply["content"]) == ("reply", "done")
    assert deployment.inspect("chat")["State"]["ExitCode"] == 0
    assert reply in deployment.messages()
    deployment.compose("start", "chat")
    deployment.wait_until_healthy()


def test_down_and_up_keep_the_data(deployment: Deployment) -> None:
    before = deployment.messages()
    deployment.compose("down", "--timeout", "20")
    deployment.compose("up", "-d")
    deployment.wait_until_healthy()
    assert before
    assert deployment.messages() == before


def test_chat_runs_alone(deployment: Deployment) -> None:
    try:
        for settings in ({"API_BASE_URL": f"http://{deployment.container('app')}:8000"}, {}):
            deployment.configure(**settings)
            deployment.compose("up", "-d", "--no-deps", "chat")
            deployment.wait_until_healthy()
            assert deployment.say("alone").json()["reply"]["content"] == "reply to alone"
    finally:
        deployment.configure()
