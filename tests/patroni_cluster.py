"""A PostgreSQL that outlives its machines: three nodes under Patroni, with etcd, and HAProxy before all of it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import requests

from tests.postgres import PROGRAMS as POSTGRES
from tests.postgres import lasting_port
from tests.services import free_port, postmaster, wait_for

PROGRAMS = os.environ.get("PATH", os.defpath) + ":/usr/sbin"  # Debian's haproxy is there
HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 150s
    timeout server 150s
    timeout check 2s
    # what an instance was at work on when it died goes to another one: all that the services do can be repeated
    retry-on conn-failure empty-response
    option redispatch 1
    default-server check inter 1s fall 2 rise 1
"""
SESSIONS = " on-marked-down shutdown-sessions"  # or those of a silent primary would outlive it
LISTEN = """
listen {name}
    bind 127.0.0.1:{port}
    mode {mode}
    option httpchk GET {look}
"""


# PostgreSQL refuses to be root's: root's processes are nobody's to themselves, and root's to all others
AS_NOBODY = ("unshare", "--user", "--map-user=65534", "--map-group=65534") if os.geteuid() == 0 else ()


def missing() -> str:
    """Return what a cluster can't do without and is not here, or nothing."""
    lacks = [name for name in ("etcd", "haproxy") if not shutil.which(name, path=PROGRAMS)]
    lacks += [] if importlib.util.find_spec("patroni") else ["patroni"]
    lacks += [] if subprocess.run([*AS_NOBODY, "true"], check=False).returncode == 0 else ["user namespaces"]
    return ", ".join(lacks)


class Node:
    """What would be a machine: a Patroni, and the PostgreSQL that it runs."""

    def __init__(self, name: str, folder: Path, etcd: int) -> None:
        self.name, self.port, self.api_port = name, lasting_port(), lasting_port()
        self.folder = folder / name
        self.folder.mkdir()
        address, api = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.api_port}"
        settings = {
            "scope": "messages",
            "name": name,
            "restapi": {"listen": api, "connect_address": api},
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": 20,  # the least that Patroni takes
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "synchronous_mode": True,
                    "failsafe_mode": True,
                    "postgresql": {"use_pg_rewind": True},
                },
                "initdb": ["data-checksums", {"encoding": "UTF8"}, {"locale": "C.UTF-8"}],
            },
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "bin_dir": str(POSTGRES),
                "data_dir": str(self.folder / "postgres"),
                "pgpass": str(self.folder / "pgpass"),
                "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
                "pg_hba": [f"{kind} trust" for kind in ("local all all", "host all,replication all 127.0.0.1/32")],
                "parameters": {"unix_socket_directories": str(self.folder)},
            },
        }
        self.settings = folder / f"{name}.yml"
        self.patroni: subprocess.Popen[bytes] | None = None
        self.settings.write_text(json.dumps(settings))  # all JSON is YAML

    def start(self) -> None:
        env = {"PATH": PROGRAMS, "HOME": str(self.folder), "LANG": "C.UTF-8"}
        with self.settings.with_suffix(".log").open("ab") as log:
            command = [*AS_NOBODY, sys.executable, "-m", "patroni", self.settings]
            self.patroni = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of it: for SIGKILL and SIGSTOP, as if the machine had died, or hung."""
        parents = [psutil.Process(self.patroni.pid)] if self.patroni else []
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            parents += [server] if (server := postmaster(self.folder)).name() == "postgres" else []
        for parent in parents:
            with suppress(psutil.NoSuchProcess):
                parent.suspend()  # or it could make more of them meanwhile
                for process in (*parent.children(recursive=True), parent):
                    process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.patroni:
            self.patroni.wait()
            self.patroni = None


class Cluster:
    """The nodes, etcd, and a HAProxy that leads to the primary and to the `services`: their names, with their ports."""

    def __init__(self, folder: Path, services: Mapping[str, Sequence[int]]) -> None:
        self.folder, self.services = folder, services
        self.parts: list[subprocess.Popen[bytes]] = []
        self.etcd_port = free_port()
        self.nodes = [Node(f"node{number}", folder, self.etcd_port) for number in (1, 2, 3)]
        self.ports = {name: free_port() for name in ("database", *services)}  # of HAProxy
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.urls = (
            f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write",
            f"postgresql://postgres@127.0.0.1:{self.ports['database']}/postgres",
        )

    def start(self) -> None:
        client, peers = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{free_port()}"
        listen = [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        listen += [f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"]
        self.etcd = self._run("etcd", "--name=etcd", "--data-dir=etcd", f"--initial-cluster=etcd={peers}", *listen)
        wait_for(lambda: requests.get(f"{client}/health", timeout=5).ok, 30, "etcd")
        for node in self.nodes:
            node.start()
        self._run("haproxy", "-db", "-f", str(self._balance()))
        self.wait_until_whole(120)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            env = {"PATH": PROGRAMS}
            self.parts.append(subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log))
        return self.parts[-1]

    def _balance(self) -> Path:
        text = HAPROXY + LISTEN.format(name="database", port=self.ports["database"], mode="tcp", look="/primary")
        text += "".join(
            f"    server {node.name} 127.0.0.1:{node.port} port {node.api_port}{SESSIONS}\n" for node in self.nodes
        )
        for name, ports in self.services.items():
            text += LISTEN.format(name=name, port=self.ports[name], mode="http", look="/ready")
            text += "".join(f"    server {name}{port} 127.0.0.1:{port}\n" for port in ports)
        path = self.folder / "haproxy.cfg"
        path.write_text(text)
        return path

    def members(self) -> dict[str, Node]:
        """Return the nodes that run as they should, by their roles, as any Patroni that answers has them."""
        for node in self.nodes:
            with suppress(requests.RequestException):
                members = requests.get(f"http://127.0.0.1:{node.api_port}/cluster", timeout=2).json()["members"]
                running = {it["name"]: it["role"] for it in members if it["state"] in ("running", "streaming")}
                return {running[node.name]: node for node in self.nodes if node.name in running}
        return {}

    def wait_until_whole(self, seconds: float = 60) -> None:
        """Wait for a primary, a standby that it waits for, and another one."""
        roles = {"leader", "sync_standby", "replica"}
        wait_for(lambda: self.members().keys() == roles, seconds, "a whole cluster")

    def switch_over(self) -> None:
        """Let the standby that is up to date take the primary's place."""
        members = self.members()
        body = {"leader": members["leader"].name, "candidate": members["sync_standby"].name}
        answer = requests.post(f"http://127.0.0.1:{members['leader'].api_port}/switchover", json=body, timeout=60)
        assert answer.ok, answer.text

    def close(self) -> None:
        for node in self.nodes:
            node.kill()
        for part in self.parts:
            part.kill()
            part.wait()
