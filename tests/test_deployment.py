"""docker compose, for real: run where a Docker Engine answers."""

import json
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.services import ROOT, free_port, wait_for

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


def has_engine() -> bool:
    try:
        commands = (["docker", "info"], ["docker", "compose", "version"])
        return all(subprocess.run(command, capture_output=True, timeout=30).returncode == 0 for command in commands)
    except OSError:
        return False


pytestmark = pytest.mark.slow


class Deployment:
    """A compose project of its own, from a copy of the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"test{uuid.uuid4().hex[:8]}"
        self.app_port, self.chat_port = free_port(), free_port()
        for name in ("Dockerfile", "Dockerfile.chat", ".dockerignore", "docker-compose.yaml"):
            shutil.copy(ROOT / name, folder)
        for name in ("persistence", "chat", "sql", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "secrets").mkdir()
        shutil.copy(ROOT / "secrets" / "init.sh", folder / "secrets")
        (folder / "model.yaml").write_text(MODEL)
        self.configure()
        subprocess.run(["sh", "secrets/init.sh"], cwd=folder, check=True, capture_output=True)
        self.secrets = {path.name: path.read_text().strip() for path in (folder / "secrets").glob("*.txt")}

    def compose(self, *arguments: str) -> str:
        files = ["-f", "docker-compose.yaml", "-f", "model.yaml"]
        return docker("compose", "-p", self.name, *files, *arguments, cwd=self.folder)

    def configure(self, **settings: str) -> None:
        own = {"APP_PORT": self.app_port, "CHAT_PORT": self.chat_port, "OPENAI_BASE_URL": "http://model:8080/v1"}
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in (own | settings).items()))

    @contextmanager
    def chat_with(self, **settings: str) -> Iterator[None]:
        """Run chat alone with other settings for a while."""
        try:
            self.configure(**settings)
            self.compose("up", "-d", "--no-deps", "chat")
            self.wait_until_healthy()
            yield
        finally:
            self.configure()
            self.compose("up", "-d", "--no-deps", "chat")
            self.wait_until_healthy()

    def container(self, part: str) -> str:
        return f"{self.name}-{part}-1"

    def inspect(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(docker("inspect", self.container(part)))[0]
        return found

    def wait_until_healthy(self) -> None:
        for part in PARTS:
            wait_for(lambda part=part: self.inspect(part)["State"]["Health"]["Status"] == "healthy", 60, part)  # type: ignore[misc]

    def call(self, port: int, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"x-api-key": self.secrets["api_key.txt"]}
        return requests.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=30, **options)

    def say(self, content: str, **fields: Any) -> requests.Response:
        stream = bool(fields.get("stream"))
        return self.call(self.chat_port, "POST", "/chat", json={"content": content, **fields}, stream=stream)

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call(self.app_port, "GET", "/messages/").json()
        return found


def docker(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(["docker", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    if not has_engine():
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
    assert turn["message"] in deployment.messages()
    assert turn["reply"] in deployment.messages()


@pytest.mark.parametrize(("part", "user"), [("db", "999:999"), ("app", "service"), ("chat", "service")])
def test_containers_are_hardened(deployment: Deployment, part: str, user: str) -> None:
    found = deployment.inspect(part)
    host = found["HostConfig"]
    assert found["Config"]["User"] == user
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert all(not mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind")


@pytest.mark.parametrize("part", PARTS)
def test_no_secret_shows(deployment: Deployment, part: str) -> None:
    name = deployment.container(part)
    seen = docker("inspect", name) + docker("history", "--no-trunc", deployment.inspect(part)["Image"])
    seen += docker("logs", name) + docker("top", name)
    assert not [name for name, secret in deployment.secrets.items() if secret and secret in seen]


def test_ports_are_bound_to_the_loopback_address(deployment: Deployment) -> None:
    bindings = [
        b for part in PARTS for ports in deployment.inspect(part)["HostConfig"]["PortBindings"].values() for b in ports
    ]
    assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}


def test_only_app_reaches_the_database(deployment: Deployment) -> None:
    look = "import socket; socket.getaddrinfo('db', 5432)"
    docker("exec", deployment.container("app"), "python", "-c", look)
    with pytest.raises(AssertionError, match="gaierror"):
        docker("exec", deployment.container("chat"), "python", "-c", look)


def test_images_carry_only_their_own(deployment: Deployment) -> None:
    look = "import importlib.util, os; print(*(n for n in NAMES if importlib.util.find_spec(n)), *os.listdir())"
    names = "NAMES = ['psycopg', 'openai', 'pytest', 'tests', 'persistence.database', 'chat.demo_model']; "
    app = docker("exec", deployment.container("app"), "python", "-c", names.replace("'chat.demo_model'", "") + look)
    chat = docker("exec", deployment.container("chat"), "python", "-c", names + look)
    assert set(app.split()) == {"psycopg", "persistence.database", "persistence", "sql", "requirements.txt"}
    assert set(chat.split()) == {"openai", "persistence", "chat", "requirements.txt"}


def test_the_role_can_do_nothing_outside_its_schema(deployment: Deployment) -> None:
    attempt = """
import psycopg, sys
from persistence import settings
connection = psycopg.connect(sys.argv[1], dbname=sys.argv[2], password=settings.load().db_password, autocommit=True)
connection.execute(sys.argv[3])
"""
    url = "postgresql://persistence@db/messages"
    run = ("exec", deployment.container("app"), "python", "-c", attempt, url)
    docker(*run, "messages", "SELECT count(*) FROM messages")
    for database, statement in [
        ("messages", "CREATE TABLE public.stray (a int)"),
        ("messages", "CREATE SCHEMA stray"),
        ("messages", "CREATE TEMP TABLE stray (a int)"),
        ("messages", "CREATE ROLE stray"),
        ("messages", "SELECT pg_read_file('/etc/passwd')"),
        ("messages", "COPY (SELECT 1) TO PROGRAM 'true'"),
        ("messages", "SELECT * FROM pg_authid"),
        ("postgres", "SELECT 1"),
    ]:
        with pytest.raises(AssertionError, match="permission denied"):
            docker(*run, database, statement)


def test_a_restart_of_the_database_loses_nothing(deployment: Deployment) -> None:
    stop, statuses, acknowledged = threading.Event(), set(), []

    def write() -> None:
        while not stop.is_set():
            message = {"chat_id": str(uuid.uuid4()), "content": "under load", "role": "human"}
            response = deployment.call(deployment.app_port, "POST", "/messages/", json=message)
            statuses.add(response.status_code)
            if response.status_code == 201:
                acknowledged.append(response.json()["message_id"])

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    try:
        deployment.compose("restart", "db")
        deployment.wait_until_healthy()
        before = len(acknowledged)
        wait_for(lambda: len(acknowledged) > before + 20, 10, "writing again")
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert statuses <= {201, 503}
    assert set(acknowledged) <= {message["message_id"] for message in deployment.messages()}


def test_killed_services_come_back_by_themselves(deployment: Deployment) -> None:
    # not by `docker kill`, which counts as a stop by hand, after which no restart policy applies
    for part in ("app", "chat"):
        container = deployment.container(part)
        subprocess.run(["docker", "exec", container, "python", "-c", "import os; os.kill(-1, 9)"], capture_output=True)
        wait_for(lambda part=part: deployment.inspect(part)["RestartCount"] > 0, 30, f"{part}'s restart")  # type: ignore[misc]
    deployment.wait_until_healthy()
    assert deployment.say("again").status_code == 200


def test_a_stop_lets_a_stream_finish(deployment: Deployment) -> None:
    content = "fault: slow 40"
    response = deployment.say(content, stream=True)
    lines = response.iter_lines()
    assert next(lines) == b"event: message"
    stopping = threading.Thread(target=deployment.compose, args=("stop", "chat"))
    stopping.start()
    events = [line for line in lines if line.startswith(b"event: ")]
    stopping.join()
    assert events[-1] == b"event: reply"
    assert deployment.inspect("chat")["State"]["ExitCode"] == 0
    deployment.compose("start", "chat")
    deployment.wait_until_healthy()


def test_down_and_up_keep_the_data(deployment: Deployment) -> None:
    before = deployment.messages()
    deployment.compose("down", "--timeout", "20")
    deployment.compose("up", "-d")
    deployment.wait_until_healthy()
    assert before
    assert deployment.messages() == before


def test_an_empty_key_of_the_provider_is_a_clear_503(deployment: Deployment) -> None:
    with deployment.chat_with(OPENAI_BASE_URL=""):
        response = deployment.say("hello")
    assert response.status_code == 503
    assert "OPENAI_API_KEY" in response.json()["message"]


def test_chat_runs_alone(deployment: Deployment) -> None:
    with deployment.chat_with(API_BASE_URL=f"http://{deployment.container('app')}:8000"):
        assert deployment.say("alone").json()["reply"]["content"] == "reply to alone"
