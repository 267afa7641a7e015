"""The part of the benchmark that talks to the model: what a turn costs, and how long a piece takes."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import requests

from tests.measure import Memory, Table, cpu_seconds, processes, say
from tests.services import KEY, ROOT, Service, free_port, wait_for
from tests.wrk import WHOLE_TURN, Load

TURN = """'POST', '/chat', headers, '{"content":"hello","stream":true}'"""
TURN_SECONDS = 3.0
DIRECT = "'POST', '/chat/completions', headers, '{}'"


@contextlib.contextmanager
def paced_model(first: float, gap: float) -> Iterator[str]:
    """A model that takes so many seconds to its first piece, and between two; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.paced_model", str(port), str(first), str(gap)]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: requests.post(url, data=b"{}", timeout=5).ok, what="the model")
        yield url
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def chat_over(model: str, persistence: Service, folder: Path) -> Iterator[Service]:
    chat = Service("chat", folder, API_BASE_URL=persistence.url, OPENAI_BASE_URL=model)
    try:
        yield chat
    finally:
        chat.stop()


def measure_turns(
    table: Table, persistence: Service, spend_a: Callable[[], float], folder: Path, smoke: bool, quick: bool
) -> None:
    """Measure the turns; `spend_a` runs the bare view, and gives a request's CPU time in milliseconds."""
    with paced_model(0, 0) as model, chat_over(model, persistence, folder) as chat:
        measure_stream(table, chat, model, 5 if smoke else 50)
        measure_cost(table, chat, persistence, spend_a, folder, 1 if smoke else 3 if quick else 5)
    for callers in [10] if smoke else [200] if quick else [200, 500, 1000]:
        with paced_model(1, 0.1) as model, chat_over(model, persistence, folder) as chat:
            measure_crowd(table, chat, model, callers, folder, 8 if smoke else 12 if quick else 14 + callers // 40)


def measure_stream(table: Table, chat: Service, model: str, rounds: int) -> None:
    client = openai.OpenAI(api_key="none", base_url=model)
    messages: Any = [{"role": "user", "content": "hello"}]
    through = httpx2.Client(base_url=chat.url, headers={"x-api-key": KEY}, timeout=60)

    def directly() -> list[float]:
        began = time.perf_counter()
        stream = client.chat.completions.create(model="paced", messages=messages, stream=True)
        return [time.perf_counter() - began for chunk in stream if chunk.choices and chunk.choices[0].delta.content]

    def by_chat() -> list[float]:
        began = time.perf_counter()
        with through.stream("POST", "/chat", json={"content": "hello", "stream": True}) as response:
            return [time.perf_counter() - began for line in response.iter_lines() if line == "event: delta"]

    calls: list[Callable[[], list[float]]] = [directly, by_chat]
    for call in calls:
        call()
    pairs = [[call() for call in calls] for _ in range(rounds)]
    client.close()
    through.close()
    first = [statistics.median(pair[which][0] for pair in pairs) * 1000 for which in (0, 1)]
    gaps = [statistics.median((pair[which][-1] - pair[which][0]) / 19 for pair in pairs) * 1000 for which in (0, 1)]
    work = "first delta of a stream"
    table.add(work, f"{first[1]:.1f} ms", f"directly {first[0]:.1f} ms", f"{first[1] - first[0]:+.1f} ms")
    table.add("  each further one", f"{gaps[1]:.2f} ms", f"directly {gaps[0]:.2f} ms", f"{gaps[1] - gaps[0]:+.2f} ms")


def measure_cost(
    table: Table, chat: Service, persistence: Service, spend_a: Callable[[], float], folder: Path, rounds: int
) -> None:
    load = Load(chat.url, TURN, folder, WHOLE_TURN)
    parts = processes(chat.process.pid) + processes(persistence.process.pid)
    costs, units, failed = [], [], 0
    load.run(50, 1)  # its threads and connections are made
    for _ in range(rounds):
        before = cpu_seconds(parts)
        result = load.run(50, 3)
        costs.append((cpu_seconds(parts) - before) / result.answered * 1000)
        failed += result.failed
        units.append(spend_a())
    cost, a = statistics.median(costs), statistics.median(units)
    figure = f"{cost:.1f} ms CPU, {failed} failed"
    table.add("a turn of 20 pieces, 50 callers", figure, f"A {a:.2f} ms", f"{cost / a:.1f} A")


def measure_crowd(table: Table, chat: Service, model: str, callers: int, folder: Path, seconds: int) -> None:
    """Callers who chat without pause, and begin at any time of the first turn, since people are not in step.

    The rate is that of the second half, when those who could not be served at once have queued up.
    """
    say(f"  {callers} callers")
    directly = Load(model, DIRECT, folder).run(callers, 7, TURN_SECONDS)
    end = time.time() + seconds
    with Memory(chat) as memory:
        result = Load(chat.url, TURN, folder, WHOLE_TURN).run(callers, seconds, TURN_SECONDS)
    rate, ideal = turns_between(chat, end - seconds / 2, end) / (seconds / 2), callers / directly.mean
    figure = f"{rate:.0f} turns/s, {result.failed} failed, {memory.peak / callers / 1024:.0f} KiB a stream"
    table.add(f"{callers} callers without pause", figure, f"directly {ideal:.0f}", f"{rate / ideal:.2f}")
    figure = f"{result.longest:.1f} s, mean {result.mean:.1f} s"
    table.add("  their longest turn", figure, f"directly {directly.longest:.1f} s")
    if callers == 200:
        result = Load(chat.url, TURN, folder, WHOLE_TURN).run(callers, 5)
        figure = f"mean {result.mean:.1f} s of {result.answered}, {result.failed} failed"
        table.add("  their first, all in step", figure, f"directly {directly.mean:.1f} s")


def turns_between(chat: Service, begin: float, end: float) -> int:
    """Count in its log the turns that ended between two points in time, of time.time()."""
    lines = [json.loads(line) for line in chat.text().splitlines() if line.startswith("{")]
    ends = [datetime.fromisoformat(line["time"]).timestamp() for line in lines if line.get("path") == "/chat"]
    return sum(begin <= moment < end for moment in ends)
