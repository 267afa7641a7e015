"""What the benchmark measures with, and what it prints."""

import contextlib
import itertools
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from tests.chats import running
from tests.services import Service, free_port

PACKAGES = "flask gunicorn gevent psycopg openai fastapi uvicorn uvloop httptools sqlalchemy asyncpg orjson httpx"
Columns = list[tuple[float, ...]]  # each holds what the rounds gave


class Side(NamedTuple):
    """One of what is compared: its code, its service, the database of that, and the module of its chat."""

    root: Path
    persistence: Service
    url: str
    chat: str | None = "chat"


class Run(NamedTuple):
    """What a run measures with."""

    table: "Table"
    folder: Path
    postgres: int  # its first process
    bin_path: Path
    rounds: int
    seconds: int


class Table:
    """The rows: the medians of each side, and the ratio of the first side's first number to that of each other one."""

    def __init__(self, sides: Sequence[str]) -> None:
        self.sides = sides
        self.rows = [["work", *sides, *(f"{sides[0]} / {side}" for side in sides[1:]), "beside it"]]
        self.rounds: list[str] = []

    def add(self, work: str, form: str, given: Mapping[str, Columns], beside: str = "") -> None:
        """Add a row of what some of the sides gave, shown by `form`."""
        medians = {side: [median(column) for column in columns] for side, columns in given.items()}
        figures = [form.format(*medians[side]) if side in medians else "" for side in self.sides]
        first = medians[self.sides[0]][0]
        others = [medians.get(side, (0.0,))[0] for side in self.sides[1:]]
        ratios = [f"{first / other:.2f}" if other else "" for other in others]
        self.rows.append([work, *figures, *ratios, beside])
        for side, columns in given.items():
            values = "; ".join(form.format(*values) for values in zip(*columns, strict=True))
            self.rounds.append(f"{work.strip()}, {side}: {values}")
        sys.stderr.write(" | ".join(filter(None, self.rows[-1])) + "\n")

    def text(self) -> str:
        first, *rest = (f"| {' | '.join(row)} |" for row in self.rows)
        return "\n".join([first, "|---" * len(self.rows[0]) + "|", *rest, "", "Each round:", *self.rounds])


def machine(database: str) -> str:
    """Return what the figures depend on: the machine, the systems, and the versions of the packages."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = [f"{package} {metadata.version(package)}" for package in PACKAGES.split() if find_spec(package)]
    return (
        f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.platform()}, "
        f"Python {platform.python_version()}, {database}\n{', '.join(versions)}\n"
    )


def start(module: str, folder: Path, **settings: Any) -> contextlib.AbstractContextManager[Service]:
    """Start a service of ours, or one of tests/peers under uvicorn, with as many processes."""
    if not module.startswith("tests.peers."):
        return running(module, folder, **settings)
    port = free_port()
    return running("uvicorn", folder, f"{module}:app", "--workers=2", f"--port={port}", PORT=port, **settings)


def interleave(rounds: int, measures: Mapping[str, Callable[[], tuple[float, ...]]]) -> dict[str, Columns]:
    """Run all measures in each round, there and back, and return for each what it gave, a tuple for each column."""
    given: dict[str, list[tuple[float, ...]]] = {name: [] for name in measures}
    order = list(measures)
    for _ in range(rounds):
        for name in order:
            given[name].append(measures[name]())
        order.reverse()
    return {name: list(zip(*its, strict=True)) for name, its in given.items()}


def processes(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def cpu_ms(*pids: int) -> float:
    """Return the milliseconds of CPU of these processes and their descendants, those that have ended too."""
    total = 0.0
    for process in itertools.chain(*map(processes, pids)):
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
            total += sum(process.cpu_times()[:4])
    return total * 1000


@contextlib.contextmanager
def memory_of(service: Service) -> Iterator[list[float]]:
    """Note the memory of a service's processes, in MiB, what they share once: as it is now, and ten times a second."""
    noted: list[float] = []
    parts, done = processes(service.process.pid), threading.Event()

    def note() -> None:
        while not done.wait(0.1 if noted else 0):
            noted.append(sum(part.memory_full_info().pss for part in parts) / 2**20)

    watcher = threading.Thread(target=note)
    watcher.start()
    try:
        yield noted
    finally:
        done.set()
        watcher.join()
