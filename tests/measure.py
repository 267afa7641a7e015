"""What the benchmark measures with, and the table that it prints."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.services import Service


class Side(NamedTuple):
    """One version of the services: its code, its persistence service, and the database of that."""

    root: Path
    persistence: Service
    url: str


class Table:
    """The rows, printed at the end: a column for each side, and for the ratio of the first one to each other one."""

    def __init__(self, sides: Sequence[str]) -> None:
        self.sides = len(sides)
        self.rows = [["work", *sides, *(f"{sides[0]} / {side}" for side in sides[1:]), "beside it"]]

    def add(self, work: str, figures: Sequence[str], beside: str = "") -> None:
        """Add a row; the ratios are those of the numbers that the figures begin with."""
        numbers = [float(figure.split()[0]) for figure in figures]
        ratios = [f"{numbers[0] / number:.2f}" if number else "" for number in numbers[1:]]
        missing = [""] * (self.sides - len(figures))
        self.rows.append([work, *figures, *missing, *ratios, *missing, beside])
        sys.stderr.write(" | ".join(filter(None, self.rows[-1])) + "\n")

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        rows = [self.rows[0], ["-" * width for width in widths], *self.rows[1:]]
        return "\n".join("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)


def interleave(rounds: int, measures: Sequence[Callable[[], tuple[float, ...]]]) -> list[list[tuple[float, ...]]]:
    """Run all measures in each round, there and back, and return for each what it gave, a tuple for each column."""
    given: list[list[tuple[float, ...]]] = [[] for _ in measures]
    order = list(zip(measures, given, strict=True))
    for _ in range(rounds):
        for measure, its in order:
            its.append(measure())
        order.reverse()
    return [list(zip(*its, strict=True)) for its in given]


def processes(pid: int, *, postgres: bool = False) -> list[psutil.Process]:
    """Return the process and its descendants: those that are PostgreSQL's, or those that are not."""
    root, found = psutil.Process(pid), []
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
            if (process.name() == "postgres") == postgres:
                found.append(process)
    return found


def cpu_seconds(*pids: int, postgres: bool = False) -> float:
    total = 0.0
    for process in itertools.chain(*(processes(pid, postgres=postgres) for pid in pids)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


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
