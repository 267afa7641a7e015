"""python -m tests.benchmark: what our services cost, beside what their parts alone would.

Starts everything itself on the loopback address, and prints one table: figure, limit, ratio. Rounds interleave what is
compared, and medians count, since machines are noisy. CPU time is that of the service's processes; its unit A is what a
bare Flask view costs that parses a JSON body and answers with it, under the same server, in the same run.
"""

import argparse
import contextlib
import http.client
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence import queries, store
from persistence.embedded import EmbeddedPostgres
from tests.fake_openai import FakeOpenAI
from tests.services import KEY, ROOT, Service, free_port, wait_for

CONNECTIONS = 16
CHATS = 5000
CONTENT = "abcdefghij" * 20
CHAT = "7c9e6679-7425-40de-944b-"  # and twelve hexadecimal digits: the chat's number
BARE = """
from flask import Flask, request
from persistence.web import server
app = Flask("bare")
@app.post("/")
def echo():
    return request.get_json()
server.serve(lambda: app, host="127.0.0.1", port={port}, workers=2, threads=8)
"""
FILL = f"""
INSERT INTO messages (message_id, chat_id, content, sent_at, role)
SELECT gen_random_uuid(), ('{CHAT}' || lpad(to_hex(n %% {CHATS}), 12, '0'))::uuid, %(content)s,
    now() - interval '1 day' + n * interval '1 ms', CASE WHEN n / {CHATS} %% 2 = 0 THEN 'human' ELSE 'ai' END
FROM generate_series(0, %(count)s - 1) AS n
"""
SUMMARIZE = """
INSERT INTO chats
SELECT chat_id, count(*), min(seq), max(seq), min(seq) FILTER (WHERE role = 'human') FROM messages GROUP BY chat_id
"""
LUA = """
math.randomseed(os.time())
local function hex(n) return string.format("%0" .. n .. "x", math.random(0, 16 ^ n - 1)) end
local function uuid() return hex(8) .. "-" .. hex(4) .. "-4" .. hex(3) .. "-a" .. hex(3) .. "-" .. hex(6) .. hex(6) end
local function chat() return "{chat}" .. string.format("%012x", math.random(0, {chats} - 1)) end
local headers = {{["x-api-key"] = "{key}", ["content-type"] = "application/json"}}
request = function() return wrk.format({request}) end
"""
BODY = (
    """'{"message_id":"' .. uuid() .. '","chat_id":"' .. chat() .. '","content":"'"""
    f""" .. '{CONTENT}' .. '","role":"human","rating":null,"sent_at":"2026-11-23T16:04:05.12Z"}}'"""
)


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
    root = psutil.Process(pid)
    return [one for one in [root, *root.children(recursive=True)] if (one.name() == "postgres") == postgres]


def cpu_seconds(of: list[psutil.Process]) -> float:
    total = 0.0
    for process in of:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Work:
    """Requests for wrk: `request` is the arguments of its wrk.format, in Lua."""

    def __init__(self, name: str, url: str, request: str, pid: int, folder: Path) -> None:
        self.name, self.url, self.pid = name, url, pid
        self.script = folder / f"{uuid.uuid4().hex}.lua"
        self.script.write_text(LUA.format(chat=CHAT, chats=CHATS, key=KEY, request=request))
        self.cpu: list[float] = []
        self.rates: list[float] = []

    def round(self, seconds: int) -> None:
        before = cpu_seconds(processes(self.pid))
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(self.script), self.url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        count = int(next(line for line in output.splitlines() if "requests in" in line).split()[0])
        assert "Non-2xx" not in output, output
        self.cpu.append((cpu_seconds(processes(self.pid)) - before) / count * 1000)
        self.rates.append(count / seconds)


def measure_requests(table: Table, works: list[Work], limits: dict[str, float], rounds: int, seconds: int) -> float:
    """Run the works in turn, and give A in milliseconds."""
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}")
        for work in works:
            work.round(seconds)
    a = statistics.median(works[0].cpu)
    for work in works:
        cpu, rate = statistics.median(work.cpu), statistics.median(work.rates)
        limit = limits.get(work.name)
        beside = f"pgbench {limit:.0f}/s" if limit else ""
        table.add(work.name, f"{cpu:.2f} ms CPU, {rate:.0f}/s", beside, f"{cpu / a:.2f} A")
    return a


def pgbench(url: str, statement: str, seconds: int, folder: Path) -> float:
    """Give the transactions a second of a statement, prepared."""
    script = folder / "pgbench.sql"
    script.write_text(statement)
    options = conninfo_to_dict(url)
    program = EmbeddedPostgres(folder / "unused")._programs / "pgbench"
    command = [program, "-n", "-M", "prepared", f"-c{CONNECTIONS}", "-j1", f"-T{seconds}", "-f", script]
    command += ["-h", options["host"], "-U", options["user"], options["dbname"]]
    output = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
    return float(next(line for line in output.splitlines() if line.startswith("tps")).split()[2])


def statements() -> dict[str, str]:
    """Give our own statements, with pgbench's variables for their parameters."""
    number = f"\\set n random(0, {CHATS - 1})\n"
    chat = f"('{CHAT}' || lpad(to_hex(:n::int), 12, '0'))"
    insert = queries.get("insert_message") % {
        "message_id": "gen_random_uuid()::text",
        "chat_id": chat,
        "content": f"'{CONTENT}'",
        "rating": "NULL",
        "sent_at": "'2026-11-23T16:04:05.12Z'",
        "role": "'human'",
    }
    selection = store.Selection(("chat_id",), {}, True)
    page = selection.statement("select_messages") % {
        "chat_id": f"{chat}::uuid",
        "limit": "50",
        "separator": "','",
        "max_bytes": str(store.MAX_PAGE_BYTES),
    }
    return {"POST /messages/": number + insert, "the last 50 of a chat": number + page}


def measure_export(table: Table, service: Service, url: str, folder: Path) -> None:
    pids = processes(service.process.pid)
    idle = sum(process.memory_info().rss for process in pids)
    peak, done = [idle], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak.append(sum(process.memory_info().rss for process in pids))

    watcher = threading.Thread(target=watch)
    watcher.start()
    ours, theirs, firsts, size = [], [], [], 0
    program = EmbeddedPostgres(folder / "unused")._programs / "psql"
    options = conninfo_to_dict(url)
    columns = "message_id, chat_id, content, rating, sent_at, role"
    statement = f"COPY (SELECT message_json({columns}) FROM messages ORDER BY seq) TO STDOUT"
    for _ in range(3):
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", service.port)
        connection.request("GET", "/messages/", headers={"x-api-key": KEY})
        response = connection.getresponse()
        response.read(1)
        firsts.append(time.perf_counter() - began)
        size = 1
        while piece := response.read(1 << 20):
            size += len(piece)
        ours.append(time.perf_counter() - began)
        connection.close()
        began = time.perf_counter()
        arguments = [program, "-h", options["host"], "-U", options["user"], "-d", options["dbname"], "-c", statement]
        subprocess.run([str(part) for part in arguments], stdout=subprocess.DEVNULL, check=True)
        theirs.append(time.perf_counter() - began)
    done.set()
    watcher.join()
    us, them = statistics.median(ours), statistics.median(theirs)
    table.add(
        "export of all messages",
        f"{us:.2f} s, {size / us / 1e6:.0f} MB/s",
        f"psql COPY {them:.2f} s",
        f"{them / us:.2f}",
    )
    table.add("  its first byte", f"{statistics.median(firsts) * 1000:.0f} ms")
    table.add("  memory above idle", f"{(max(peak) - idle) / 2**20:.0f} MiB")


def measure_chats(table: Table, service: Service) -> None:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        assert service.get("/chats/").status_code == 200
        times.append(time.perf_counter() - began)
    table.add("first page of GET /chats/", f"{statistics.median(times) * 1000:.1f} ms")


@contextlib.contextmanager
def stream_directly(model: FakeOpenAI) -> Iterator[Callable[[], list[float]]]:
    client = openai.OpenAI(api_key="none", base_url=model.url)

    def call() -> list[float]:
        messages: Any = [{"role": "user", "content": "hello"}]
        began = time.perf_counter()
        stream = client.chat.completions.create(model="demo", messages=messages, stream=True)
        return [time.perf_counter() - began for chunk in stream if chunk.choices and chunk.choices[0].delta.content]

    yield call
    client.close()


@contextlib.contextmanager
def stream_through(chat: Service) -> Iterator[Callable[[], list[float]]]:
    client = httpx2.Client(base_url=chat.url, headers={"x-api-key": KEY}, timeout=60)

    def call() -> list[float]:
        began = time.perf_counter()
        with client.stream("POST", "/chat", json={"content": "hello", "stream": True}) as response:
            assert response.status_code == 200, response.read()
            return [time.perf_counter() - began for line in response.iter_lines() if line == "event: delta"]

    yield call
    client.close()


def measure_stream(table: Table, chat: Service, model: FakeOpenAI, rounds: int) -> None:
    model.text = " ".join(f"word{number}" for number in range(20))
    with stream_directly(model) as direct, stream_through(chat) as through:
        direct(), through()
        pairs = [(direct(), through()) for _ in range(rounds)]
    first = [statistics.median(times[which][0] for times in pairs) * 1000 for which in (0, 1)]
    gaps = [statistics.median((times[which][-1] - times[which][0]) / 19 for times in pairs) * 1000 for which in (0, 1)]
    table.add(
        "first delta of a stream", f"{first[1]:.1f} ms", f"directly {first[0]:.1f} ms", f"+{first[1] - first[0]:.1f} ms"
    )
    table.add("  each further one", f"{gaps[1]:.2f} ms", f"directly {gaps[0]:.2f} ms", f"+{gaps[1] - gaps[0]:.2f} ms")


def measure_turns(table: Table, chat: Service, persistence: Service, a: float, callers: int, turns: int) -> None:
    parts = processes(chat.process.pid) + processes(persistence.process.pid)
    before = cpu_seconds(parts)
    failures: list[int] = []

    def talk() -> None:
        with stream_through(chat) as call:
            failures.extend(turn for turn in range(turns) if len(call()) != 20)

    run_all(talk, callers)
    cpu = (cpu_seconds(parts) - before) / (callers * turns) * 1000
    table.add(
        f"a turn of 20 pieces, {callers} callers", f"{cpu:.1f} ms CPU, {len(failures)} failed", "", f"{cpu / a:.1f} A"
    )


def measure_crowd(table: Table, chat: Service, model: FakeOpenAI, callers: int, seconds: float) -> None:
    """Callers who chat without pause; 1 s to the first piece, then 20 pieces 100 ms apart: 3 s a turn at best."""
    model.first_seconds, model.word_seconds = 1.0, 0.1
    counts, stop = [0] * callers, time.monotonic() + seconds
    failures: list[int] = []
    lock, numbers = threading.Lock(), iter(range(callers))

    def talk() -> None:
        with lock:
            number = next(numbers)
        with stream_through(chat) as call:
            while time.monotonic() < stop:
                try:
                    good = len(call()) == 20
                except (AssertionError, httpx2.HTTPError):
                    good = False
                counts[number] += good
                failures.extend([] if good else [1])

    began = time.monotonic()
    run_all(talk, callers)
    rate, ideal = sum(counts) / (time.monotonic() - began), callers / 3.0
    figure = f"{rate:.0f} turns/s, {len(failures)} failed, the least {min(counts)}"
    table.add(f"{callers} callers without pause", figure, f"ideal {ideal:.0f}", f"{rate / ideal:.2f}")
    model.first_seconds = model.word_seconds = 0.0


def run_all(target: Callable[[], None], count: int) -> None:
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_start(table: Table, folder: Path, data: Path) -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        service = Service("persistence", folder, DATA_DIR=data, API_KEY=KEY)
        times.append(time.perf_counter() - began)
        service.stop()
    table.add("start of persistence, data there", f"{statistics.median(times):.2f} s")
    port, times = free_port(), []
    for _ in range(3):
        began = time.perf_counter()
        own: dict[str, Any] = {"DATA_DIR": data, "API_KEY": KEY, "API_BASE_URL": f"http://127.0.0.1:{port}"}
        system = Service("chat", folder, "--with-persistence", "--demo-model", **own)
        times.append(time.perf_counter() - began)
        system.stop()
    table.add("start of both", f"{statistics.median(times):.2f} s")


def fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE messages DISABLE TRIGGER USER")
        connection.execute(FILL, {"content": CONTENT, "count": count})
        connection.execute(SUMMARIZE)
        connection.execute("ALTER TABLE messages ENABLE TRIGGER USER")
        connection.execute("VACUUM ANALYZE")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--large", action="store_true", help="with 10,000,000 messages too")
    parser.add_argument("--smoke", action="store_true", help="only see that it runs")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    rounds, seconds, sizes = (3, 3, [10_000, 1_000_000]) if options.quick else (7, 5, [10_000, 1_000_000])
    if options.smoke:
        rounds, seconds, sizes = 1, 1, [1000, 2000]
    if options.large:
        sizes.append(10_000_000)
    table = Table()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)
        postgres = EmbeddedPostgres(folder / "data")
        url = postgres.start()
        stack.callback(postgres.stop)
        model = FakeOpenAI()
        stack.callback(model.stop)
        services: dict[int, Service] = {}
        for size in sizes:
            say(f"filling a database with {size} messages")
            name = f"messages{size}"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}".encode())
            database = url.replace("dbname=postgres", f"dbname={name}")
            services[size] = Service("persistence", folder, DATABASE_URL=database, API_KEY=KEY)
            stack.callback(services[size].stop)
            fill(database, size)
        size = sizes[1]
        main_service, database = services[size], url.replace("dbname=postgres", f"dbname=messages{size}")
        chat = Service("chat", folder, API_BASE_URL=services[sizes[0]].url, OPENAI_BASE_URL=model.url)
        stack.callback(chat.stop)
        bare_port = free_port()
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE.format(port=bare_port)], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        stack.callback(bare.wait)
        stack.callback(bare.terminate)
        wait_for(lambda: socket.create_connection(("127.0.0.1", bare_port)), what="the bare view").close()

        say("requests")
        with psycopg.connect(database) as connection:
            ids = [str(row[0]) for row in connection.execute("SELECT message_id FROM messages LIMIT 1000")]
        last = "'GET', '/messages/?chat_id=' .. chat() .. '&order=desc&limit=50', headers"
        known = "({" + ",".join(f"'{one}'" for one in ids) + f"}})[math.random(1, {len(ids)})]"
        rate = f"""'PUT', '/messages/' .. {known}, headers, '{{"rating":true}}'"""
        pid = main_service.process.pid
        works = [
            Work(
                "A: a bare Flask view",
                f"http://127.0.0.1:{bare_port}",
                f"'POST', '/', headers, {BODY}",
                bare.pid,
                folder,
            ),
            Work("POST /messages/", main_service.url, f"'POST', '/messages/', headers, {BODY}", pid, folder),
            Work("the last 50 of a chat", main_service.url, last, pid, folder),
            Work("PUT a rating", main_service.url, rate, pid, folder),
        ]
        for other in (each for each in sizes if each != size):
            service = services[other]
            works.append(Work(f"the last 50, of {other}", service.url, last, service.process.pid, folder))
        limits = {name: pgbench(database, text, seconds, folder) for name, text in statements().items()}
        a = measure_requests(table, works, limits, rounds, seconds)
        say("the export")
        measure_export(table, main_service, database, folder)
        measure_chats(table, main_service)
        say("streams")
        measure_stream(table, chat, model, 5 if options.smoke else 50)
        measure_turns(table, chat, services[sizes[0]], a, *((5, 1) if options.smoke else (50, 10)))
        for callers in [10] if options.smoke else [200] if options.quick else [200, 500, 1000]:
            measure_crowd(table, chat, model, callers, 3 if options.smoke else 15)
        say("starts")
        stack.close()
        if not options.smoke:
            with tempfile.TemporaryDirectory() as name:
                Path(name).chmod(0o711)
                measure_start(table, Path(name), Path(name) / "data")
    sys.stdout.write(f"{table.text()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
