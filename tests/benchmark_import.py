"""The part of the benchmark that imports, and what that does to other callers."""

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from tests.measure import Columns, Run, Side, memory_of
from tests.services import KEY
from tests.wrk import POST, Load

CALLERS, PAUSE = 8, 50  # each makes a pause of so many milliseconds before each request
NDJSON = "application/x-ndjson"
EXPORT = (
    "curl -sN {url}/messages/ -H 'x-api-key: {key}' -H 'Accept: {media}' | head -n {count} | split -a4 -C1m - part."
)


def measure_import(run: Run, source: Side, empty: Side, count: int) -> None:
    """Import what `source` exports, in bodies of 1 MiB at most."""
    service = empty.persistence
    command = EXPORT.format(url=source.persistence.url, key=KEY, media=NDJSON, count=count)
    subprocess.run(command, shell=True, cwd=run.folder, check=True)
    parts = sorted(run.folder.glob("part.*"))
    done = threading.Event()

    def send(part: Path) -> int:
        if done.is_set():
            return 0
        response = service.post("/messages/", data=part.read_bytes(), headers={"Content-Type": NDJSON})
        assert response.status_code == 200, response.text
        return int(response.json()["stored"])

    began = time.perf_counter()
    with memory_of(service) as memory, ThreadPoolExecutor(2) as two:
        assert sum(two.map(send, parts)) == count
    seconds = time.perf_counter() - began
    form = "{:.0f}/s, {:.1f} s, {:.1f} MiB above idle"
    given: dict[str, Columns] = {"ours": [(count / seconds,), (seconds,), (max(memory) - memory[0],)]}
    run.table.add(f"import {count} messages, two bodies at once", form, given)

    with psycopg.connect(empty.url, autocommit=True) as connection:
        connection.execute("TRUNCATE messages, chats")
    others = Load(service.url, POST, run.folder, pause=PAUSE)
    length = min(20, int(seconds * 0.7) + 1)
    alone, _, alone_p99 = others.run(CALLERS, length)
    with ThreadPoolExecutor(4) as four:
        sent = four.map(send, parts)
        beside, failed, p99 = others.run(CALLERS, length)
        done.set()
        list(sent)
    given = {"ours": [(p99,), (beside / length,), (failed,)]}
    rest = f"alone {alone_p99:.0f} ms, {alone / length:.0f}/s"
    run.table.add("  99 % of POSTs beside four of them", "{:.0f} ms, {:.0f}/s, {:.0f} failed", given, rest)
