"""The part of the benchmark that imports, and what that does to other callers."""

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from tests.measure import Side, Table, memory_of
from tests.wrk import POST, Load

CALLERS, PAUSE = 8, 50  # each makes a pause of so many milliseconds before each request
HEADERS = {"Content-Type": "application/x-ndjson"}


def measure_import(table: Table, empty: Side, export: list[str], count: int, folder: Path) -> None:
    """Import what the command `export` writes, in bodies of 1 MiB at most."""
    service = empty.persistence
    with subprocess.Popen(export, stdout=subprocess.PIPE) as source:
        subprocess.run(["split", "-a4", "-C1m", "-", folder / "part."], stdin=source.stdout, check=True)
    parts = sorted(folder.glob("part.*"))
    done = threading.Event()

    def send(part: Path) -> int:
        if done.is_set():
            return 0
        response = service.post("/messages/", data=part.read_bytes(), headers=HEADERS)
        assert response.status_code == 200, response.text
        return int(response.json()["stored"])

    began = time.perf_counter()
    with memory_of(service) as memory, ThreadPoolExecutor(2) as two:
        assert sum(two.map(send, parts)) == count
    seconds = time.perf_counter() - began
    figure = f"{seconds:.2f} s, {count / seconds:.0f}/s, {max(memory) - memory[0]:.1f} MiB above idle"
    table.add(f"import {count} messages, two at once", [figure])

    with psycopg.connect(empty.url, autocommit=True) as connection:
        connection.execute("TRUNCATE messages, chats")
    others = Load(service.url, POST, folder, pause=PAUSE)
    length = min(20, int(seconds * 0.7) + 1)
    alone, _, alone_p99 = others.run(CALLERS, length)
    with ThreadPoolExecutor(4) as four:
        sent = four.map(send, parts)
        beside, failed, p99 = others.run(CALLERS, length)
        done.set()
        list(sent)
    figure = f"{p99:.0f} ms, {beside / length:.0f}/s, {failed} failed"
    table.add("  99 % of POSTs beside four", [figure], f"alone {alone_p99:.0f} ms, {alone / length:.0f}/s")
