"""The part of the benchmark that talks to the model: what a turn costs, and how long a piece takes."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any

import openai
import requests

from tests.measure import Columns, Run, Side, cpu_ms, interleave, memory_of, start
from tests.services import KEY, ROOT, Service, free_port, wait_for

BODY = b'{"content":"hello","stream":true}'
HEAD = f"POST /chat HTTP/1.1\r\nHost: chat\r\nx-api-key: {KEY}\r\nContent-Type: application/json\r\nContent-Length: "
REQUEST = HEAD.encode() + b"%d\r\n\r\n%b" % (len(BODY), BODY)
FIRST, GAP, PIECES = 1.0, 0.1, 20  # the model's pace in a crowd
TURN_SECONDS = FIRST + GAP * (PIECES - 1)
# what a turn costs: of a reply of some 75 words, with so many callers that some CPU is left, and each piece comes alone
SMALL_GAP, MANY_PIECES, CALLERS = 0.02, 100, 20
UNMARKED = """
from chat import __main__, client
client.PersistenceClient.take_turns = lambda self, caller, worker_id, message_ids: list(message_ids)
__main__.main()
"""


Turn = tuple[float, float, bool]  # when it ended, the seconds to its first piece, if it was answered in whole


async def call(port: int, begin: float, end: float, pieces: int, turns: list[Turn]) -> None:
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
        is_whole = received.count(b"event: delta") == pieces and b"event: reply" in received
        turns.append((time.perf_counter(), first, is_whole))
    writer.close()


def crowd(chat: Service, callers: int, seconds: float, pieces: int, spread: float = 0.0) -> list[Turn]:
    """Return the turns that so many callers begin within so many seconds; they come over `spread` seconds."""
    turns: list[Turn] = []

    async def run() -> None:
        now = time.perf_counter()
        begins = [now + number / callers * spread for number in range(callers)]
        await asyncio.gather(*(call(chat.port, begin, now + seconds, pieces, turns) for begin in begins))

    asyncio.run(run())
    return turns


@contextlib.contextmanager
def paced_model(first: float, gap: float, pieces: int) -> Iterator[str]:
    """A model that takes so many seconds to its first piece, and between two; its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.paced_model", *map(str, (port, first, gap, pieces))]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: requests.post(url, data=b"{}", timeout=5).ok, what="the model")
        yield url
    finally:
        process.terminate()
        process.wait()


def chat_over(run: Run, model: str, side: Side, module: str | None = None) -> AbstractContextManager[Service]:
    urls = {"API_BASE_URL": side.persistence.url, "OPENAI_BASE_URL": model}
    return start(module or str(side.chat), run.folder, PYTHONPATH=side.root, **urls)


def measure_turns(run: Run, sides: dict[str, Side], crowds: list[int]) -> None:
    sides = {name: side for name, side in sides.items() if side.chat}
    (run.folder / "unmarked.py").write_text(UNMARKED)
    with paced_model(0, SMALL_GAP, MANY_PIECES) as model, contextlib.ExitStack() as stack:
        chats = {name: stack.enter_context(chat_over(run, model, side)) for name, side in sides.items()}
        measure_first(run, chats, model)
        unmarked = stack.enter_context(chat_over(run, model, sides["ours"], "unmarked"))
        measures = {name: partial(cost, run, chats[name], side) for name, side in sides.items()}
        measures["unmarked"] = partial(cost, run, unmarked, sides["ours"])
        interleave(1, measures)
        given = interleave(run.rounds, measures)
    without = given.pop("unmarked")
    form = "{:.2f} ms CPU (chat {:.2f}), PostgreSQL {:.2f} ms, {:.0f} turns/s, {:.1f} calls"
    run.table.add(f"a streamed turn of {MANY_PIECES} pieces, {CALLERS} callers", form, given)
    add_mark(run, given["ours"], without)
    with paced_model(FIRST, GAP, PIECES) as model:
        for callers in crowds:
            measure_crowd(run, model, sides, callers)


def add_mark(run: Run, marked: Columns, unmarked: Columns) -> None:
    """Add what the mark costs: the difference, in each round, from the same turns without it."""
    rounds = zip(zip(*marked, strict=True), zip(*unmarked, strict=True), strict=True)
    shares = [(100 * (1 - (b[0] + b[2]) / (a[0] + a[2])), a[0] - b[0], a[2] - b[2], a[4] - b[4]) for a, b in rounds]
    form = "{:.1f} %: {:.2f} ms, PostgreSQL {:.2f} ms, {:.1f} calls"
    run.table.add("  its mark's share, in all CPU", form, {"ours": list(zip(*shares, strict=True))})


def measure_first(run: Run, chats: dict[str, Service], model: str) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]

    def directly() -> tuple[float]:
        began = time.perf_counter()
        with client.chat.completions.create(model="paced", messages=messages, stream=True) as stream:
            next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
            return ((time.perf_counter() - began) * 1000,)

    def through(chat: Service) -> tuple[float]:
        return (median(first * 1000 for _, first, _ in crowd(chat, 1, 0.1, MANY_PIECES)),)

    with openai.OpenAI(api_key="none", base_url=model) as client:
        measures = {name: partial(through, chat) for name, chat in chats.items()}
        given = interleave(run.rounds * 5, measures | {"": directly})
    direct = median(given.pop("")[0])
    run.table.add("first piece of a reply", "{:.1f} ms", given, f"the model, directly {direct:.1f} ms")


def cost(run: Run, chat: Service, side: Side) -> tuple[float, float, float, float, float]:
    """Return the milliseconds of CPU for a turn of both services, of chat alone, and of PostgreSQL, the turns a second,
    and the calls to the persistence service for a turn, each of which is a line in its log."""
    pids, log = (chat.process.pid, side.persistence.process.pid, run.postgres), side.persistence.output
    before, began, size = [cpu_ms(pid) for pid in pids], time.perf_counter(), log.stat().st_size
    turns = crowd(chat, CALLERS, run.seconds * 2, MANY_PIECES)
    assert all(is_whole for _, _, is_whole in turns)
    took, count = time.perf_counter() - began, len(turns)
    own, other, its = ((cpu_ms(pid) - then) / count for pid, then in zip(pids, before, strict=True))
    return own + other, own, its, count / took, log.read_bytes().count(b"\n", size) / count


def measure_crowd(run: Run, model: str, sides: dict[str, Side], callers: int) -> None:
    """The rate is that of the second half, when those who could not be served at once have queued up."""
    seconds = run.seconds * 3 + callers // 40

    def measure(side: Side) -> tuple[float, float, float, float]:
        with chat_over(run, model, side) as chat, memory_of(chat) as memory:
            end = time.perf_counter() + seconds
            turns = crowd(chat, callers, seconds, PIECES, TURN_SECONDS)
        _, firsts, whole = zip(*turns, strict=True)
        rate = sum(end - seconds / 2 <= moment < end for moment, _, is_whole in turns if is_whole) / (seconds / 2)
        return rate, max(firsts), max(memory), whole.count(False)

    given = interleave(run.rounds // 3 + 1, {name: partial(measure, side) for name, side in sides.items()})
    failed = ", ".join(f"{sum(columns.pop()):.0f} {name}" for name, columns in given.items())
    form = "{:.1f} turns/s, first piece at most {:.2f} s, {:.0f} MiB"
    ideal = f"at the model's pace {callers / TURN_SECONDS:.0f} turns/s, first piece {FIRST:.0f} s; failed: {failed}"
    run.table.add(f"{callers} callers without pause", form, given, ideal)
