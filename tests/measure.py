"""What the benchmark measures with, and the table that it prints."""

import contextlib
import sys
import threading

import psutil

from tests.services import Service


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Table:
    """The rows, printed at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = [("work", "figure", "limit", "ratio")]

    def add(self, work: str, figure: str, limit: str = "", ratio: str = "") -> None:
        self.rows.append((work, figure, limit, ratio))
        say(f"  {work}: {figure} {limit} {ratio}")

    def text(self) -> str:
        widths = [max(len(row[column]) for row in self.rows) for column in range(4)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in self.rows
        ]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([lines[0], rule, *lines[1:]])


def processes(pid: int, *, postgres: bool = False) -> list[psutil.Process]:
    root, found = psutil.Process(pid), []
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL's come and go
            if (process.name() == "postgres") == postgres:
                found.append(process)
    return found


def cpu_seconds(of: list[psutil.Process]) -> float:
    total = 0.0
    for process in of:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Memory:
    """Watches the memory of a service's processes; `peak` is in bytes above what it was at the beginning."""

    def __init__(self, service: Service) -> None:
        self.processes = processes(service.process.pid)
        self.idle = self.now()
        self.peak = 0
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self.watch)

    def now(self) -> int:
        return sum(process.memory_info().rss for process in self.processes)

    def watch(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, self.now() - self.idle)

    def __enter__(self) -> "Memory":
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()
