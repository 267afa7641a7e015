"""The part of the benchmark that talks to the model: what a turn costs, and how long a piece takes."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import openai
import requests

from tests.chats import running
from tests.measure import Side, Table, cpu_seconds, interleave, memory_of
from tests.services import KEY, ROOT, Service, free_port, wait_for

BODY = b'{"content":"hello","stream":true}'
HEAD = f"POST /chat HTTP/1.1\r\nHost: chat\r\nx-api-key: {KEY}\r\nContent-Type: application/json\r\nContent-Length: "
REQUEST = HEAD.encode() + b"%d\r\n\r\n%b" % (len(BODY), BODY)
FIRST, GAP, PIECES = 1.0, 0.1, 20  # the model's pace in a crowd
TURN_SECONDS = FIRST + GAP * (PIECES - 1)


Turn = tuple[float, float, bool]  # when it ended, the seconds to its first piece, if it was answered in whole


async def call(port: int, begin: float, end: float, turns: list[Turn]) -> None:
    """Chat without pause over one connection, from one point in time to another, of time.perf_counter()."""
    await asyncio.sleep(begin - time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    is_whole = True
    while is_whole and (began := time.perf_counter()) < end:
        writer.write(REQUEST)
        received, first = b"", 0.0
        while not received.endswith(b"0\r\n\r\n") and (data := await reader.read(65536)):
            received += data
            if not first and b"event: delta" in received:
                first = time.perf_counter() - began
        is_whole = received.count(b"event: delta") == PIECES and b"event: reply" in received
        turns.append((time.perf_counter(), first, is_whole))
    writer.close()


def crowd(chat: Service, callers: int, seconds: float, spread: float = 0.0) -> list[Turn]:
    """Return the turns that so many callers begin within so many seconds; they come over `spread` seconds."""
    turns: list[Turn] = []

    async def run() -> None:
        now = time.perf_counter()
        begins = [now + number / callers * spread for number in range(callers)]
        await asyncio.gather(*(call(chat.port, begin, now + seconds, turns) for begin in begins))

    asyncio.run(run())
    return turns


@contextlib.contextmanager
def paced_model(first: float, gap: float) -> Iterator[str]:
    """A model that takes so many seconds to its first piece, and between two; its address."""
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


def chat_over(model: str, side: Side, folder: Path) -> contextlib.AbstractContextManager[Service]:
    urls = {"API_BASE_URL": side.persistence.url, "OPENAI_BASE_URL": model}
    return running("chat", folder, PYTHONPATH=side.root, **urls)


def measure_turns(table: Table, sides: list[Side], folder: Path, rounds: int, seconds: int, crowds: list[int]) -> None:
    with paced_model(0, 0) as model, contextlib.ExitStack() as stack:
        chats = [stack.enter_context(chat_over(model, side, folder)) for side in sides]
        measure_first(table, chats, model, rounds * 10)
        measures = [partial(cost, *pair, seconds) for pair in zip(chats, sides, strict=True)]
        figures = [f"{median(ms):.2f} ms CPU, {median(rate):.0f}/s" for ms, rate in interleave(rounds, measures)]
        table.add(f"a turn of {PIECES} pieces, 50 callers", figures)
    with paced_model(FIRST, GAP) as model:
        for callers in crowds:
            measure_crowd(table, model, sides, callers, folder, seconds * 3 + callers // 40, rounds // 3 + 1)


def measure_first(table: Table, chats: list[Service], model: str, rounds: int) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]

    def directly() -> tuple[float]:
        began = time.perf_counter()
        with client.chat.completions.create(model="paced", messages=messages, stream=True) as stream:
            next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
            return ((time.perf_counter() - began) * 1000,)

    def through(chat: Service) -> tuple[float]:
        return (median(first * 1000 for _, first, _ in crowd(chat, 1, 0.1)),)

    with openai.OpenAI(api_key="none", base_url=model) as client:
        *ours, direct = interleave(rounds, [*(partial(through, chat) for chat in chats), directly])
    figures = [f"{median(ms):.2f} ms" for (ms,) in ours]
    table.add("first piece of a reply", figures, f"directly {median(direct[0]):.2f} ms")


def cost(chat: Service, side: Side, seconds: float) -> tuple[float, float]:
    """Return the milliseconds of CPU of both services for a turn, and the turns a second."""
    pids = chat.process.pid, side.persistence.process.pid
    before, began = cpu_seconds(*pids), time.perf_counter()
    turns = crowd(chat, 50, seconds)
    assert all(is_whole for _, _, is_whole in turns)
    return (cpu_seconds(*pids) - before) / len(turns) * 1000, len(turns) / (time.perf_counter() - began)


def measure_crowd(
    table: Table, model: str, sides: list[Side], callers: int, folder: Path, seconds: int, rounds: int
) -> None:
    """The rate is that of the second half, when those who could not be served at once have queued up."""

    def measure(side: Side) -> tuple[float, float, float, float]:
        with chat_over(model, side, folder) as chat, memory_of(chat) as memory:
            end = time.perf_counter() + seconds
            turns = crowd(chat, callers, seconds, TURN_SECONDS)
        ends, firsts, whole = zip(*turns, strict=True)
        rate = sum(end - seconds / 2 <= moment < end for moment in ends) / (seconds / 2)
        return rate, max(firsts), max(memory), whole.count(False)

    given = interleave(rounds, [partial(measure, side) for side in sides])
    figures = [f"{median(rate):.1f} turns/s, {sum(failed):.0f} failed" for rate, _, _, failed in given]
    table.add(f"{callers} callers without pause", figures, f"at the model's pace {callers / TURN_SECONDS:.0f}")
    table.add("  their slowest first piece", [f"{median(first):.2f} s" for _, first, _, _ in given], f"model {FIRST} s")
    table.add("  memory of the chat service", [f"{median(memory):.0f} MiB" for _, _, memory, _ in given])
