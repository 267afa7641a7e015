"""The services as real processes, for the tests to talk to, to stop and to kill."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import requests

ROOT = Path(__file__).resolve().parent.parent
KEY = "test-key-1"
OTHER_KEY = "test-key-2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any], seconds: float = 30, what: str = "the condition") -> Any:
    """Return the first true value of `condition`; what it raises counts as not yet."""
    deadline = time.monotonic() + seconds
    problem: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (OSError, requests.RequestException) as exc:
            problem = exc
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {seconds} s") from problem


class Service:
    """`python -m MODULE`, with a session that presents the key. The output goes to a file."""

    def __init__(self, module: str, folder: Path, *flags: str, wait: bool = True, **settings: Any) -> None:
        self.port = int(settings.pop("PORT", 0)) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store_url = settings.get("API_BASE_URL", self.url)  # where the messages are
        self.output = folder / f"{module}-{self.port}.log"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        env = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PORT": str(self.port), **inherited}
        env |= {name: str(value) for name, value in settings.items()}
        self.worker_count = 0 if flags else int(settings.get("WEB_CONCURRENCY") or 2)
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *flags], env=env, cwd=folder, stdout=output, stderr=output
            )
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["x-api-key"] = KEY
        if wait:
            wait_for(self.is_up, 30, f"{module} on {self.port}")

    def is_up(self) -> bool:
        """Tell whether all workers are there and ready; which of them answers a connection is up to the kernel."""
        assert self.process.poll() is None, self.text()
        if self.worker_count and len(self.workers()) != self.worker_count:
            return False
        return all(requests.get(f"{self.url}/ready", timeout=5).ok for _ in range(8))

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, self.url + path, **({"timeout": 30} | options))

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.request("POST", path, **options)

    def text(self) -> str:
        return self.output.read_text()

    def log(self, request_id: str) -> dict[str, Any]:
        """Wait for the log line of this request, and return it."""

        def find() -> dict[str, Any] | None:
            lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
            return next((line for line in lines if line.get("request_id") == request_id and "path" in line), None)

        line: dict[str, Any] = wait_for(find)
        return line

    def workers(self) -> list[int]:
        running = psutil.process_iter(["ppid", "status"])  # without those that end meanwhile
        children = [process for process in running if process.info["ppid"] == self.process.pid]
        return [child.pid for child in children if child.info["status"] != psutil.STATUS_ZOMBIE]

    def stop(self, end_signal: signal.Signals = signal.SIGTERM) -> int:
        self.session.close()
        self.process.send_signal(end_signal)
        return self.process.wait(45)

    def connect(self, seconds: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)

    def is_refused(self) -> bool:
        """Tell whether a new connection is refused."""
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Send bytes as they are, and return what comes until the connection is closed or falls silent."""
        with self.connect(seconds) as connection:
            connection.sendall(data)
            return receive(connection)


def receive(connection: socket.socket) -> bytes:
    """Return what comes until the connection is closed, or a whole response with a Content-Length is here."""
    received = b""
    while True:
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length and len(body) >= int(length[1]):
            return received
        try:
            data = connection.recv(65536)
        except TimeoutError:
            return received
        if not data:
            return received
        received += data


def seconds_of(call: Callable[[], requests.Response]) -> tuple[int, float]:
    """Return the status that a call gets, and how long it takes."""
    began = time.monotonic()
    return call().status_code, time.monotonic() - began


def postmaster(data_dir: Path) -> psutil.Process:
    """Return the first process of the PostgreSQL that a service runs in this folder."""
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))
