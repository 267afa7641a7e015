"""python -m tests.benchmark: what our services cost, beside what their parts alone would.

Starts everything itself on the loopback address, and prints one table: figure, limit, ratio. Rounds interleave what is
compared, and medians count, since machines are noisy. CPU time is that of the service's processes; its unit A is what a
bare Flask view costs that parses a JSON body and answers with it, under gunicorn's own threads with the same settings,
in the same run.
"""

import argparse
import contextlib
import functools
import http.client
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from persistence import queries, store
from persistence.embedded import EmbeddedPostgres
from tests.benchmark_turns import measure_turns
from tests.measure import Memory, Table, cpu_seconds, processes, say
from tests.services import KEY, ROOT, Service, free_port, wait_for
from tests.wrk import BODY, CHAT, CHATS, CONTENT, Load

CONNECTIONS = 16
BARE = """
from flask import Flask, request
app = Flask("bare")
@app.post("/")
def echo():
    return request.get_json()
"""
OUR_SERVER = """
from persistence.web import server
server.serve(lambda: app, host="127.0.0.1", port={port}, workers=2, threads=8)
"""
ITS_OWN_THREADS = """
from gunicorn.app.base import BaseApplication
class Server(BaseApplication):
    def load_config(self):
        options = {{"bind": "127.0.0.1:{port}", "workers": 2, "threads": 8, "reuse_port": True, "keepalive": 75}}
        for name, value in (options | {{"worker_class": "gthread", "control_socket_disable": True}}).items():
            self.cfg.set(name, value)
    def load(self):
        return app
Server().run()
"""
FILL = """
INSERT INTO messages (message_id, chat_id, content, sent_at, role)
SELECT gen_random_uuid(), (%(chat)s || lpad(to_hex(n %% %(chats)s), 12, '0'))::uuid, %(content)s,
    now() - interval '1 day' + n * interval '1 ms', CASE WHEN n / %(chats)s %% 2 = 0 THEN 'human' ELSE 'ai' END
FROM generate_series(0, %(count)s - 1) AS n
"""
SUMMARIZE = """
INSERT INTO chats
SELECT chat_id, count(*), min(seq), max(seq), min(seq) FILTER (WHERE role = 'human') FROM messages GROUP BY chat_id
"""


class Work:
    """Requests to a service, and what each costs its processes and PostgreSQL's."""

    def __init__(self, name: str, load: Load, pid: int, postgres_pid: int) -> None:
        self.name, self.load, self.pid, self.postgres_pid = name, load, pid, postgres_pid
        self.cpu: list[float] = []
        self.postgres_cpu: list[float] = []
        self.rates: list[float] = []

    def spent(self) -> tuple[float, float]:
        return cpu_seconds(processes(self.pid)), cpu_seconds(processes(self.postgres_pid, postgres=True))

    def round(self, seconds: int) -> float:
        """Run once, and give the service's CPU time for a request, in milliseconds."""
        before = self.spent()
        result = self.load.run(CONNECTIONS, seconds)
        assert result.failed == 0, f"{self.name}: {result}"
        ours, postgres = (now - then for now, then in zip(self.spent(), before, strict=True))
        self.cpu.append(ours / result.answered * 1000)
        self.postgres_cpu.append(postgres / result.answered * 1000)
        self.rates.append(result.answered / seconds)
        return self.cpu[-1]

    def cost(self) -> float:
        """Give the median of the service's CPU time for a request, in milliseconds."""
        return statistics.median(self.cpu)


def measure_requests(table: Table, works: list[Work], limits: dict[str, float], rounds: int, seconds: int) -> None:
    """Run the works in turn; the first one is A."""
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}")
        for work in works:
            work.round(seconds)
    a = works[0].cost()
    for work in works:
        rate, postgres = statistics.median(work.rates), statistics.median(work.postgres_cpu)
        figure = f"{work.cost():.2f} ms CPU, {rate:.0f}/s"
        if postgres > 0.01:
            figure += f", PostgreSQL {postgres:.2f} ms"
        limit = limits.get(work.name)
        table.add(work.name, figure, f"pgbench {limit:.0f}/s" if limit else "", f"{work.cost() / a:.2f} A")


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
    rating = queries.get("update_message") % {
        **dict.fromkeys(("content", "chat_id", "role", "sent_at"), "NULL"),
        "rates": "TRUE",
        "rating": "'true'",
        "message_id": "(SELECT message_id FROM messages WHERE seq = :m)",
    }
    chats = queries.get("select_chats") % {"before": str(store.LAST_SEQ), "limit": "50"}
    return {
        "POST /messages/": number + insert,
        "the last 50 of a chat": number + page,
        "PUT a rating": "\\set m random(1, 1000)\n" + rating,
        "first page of GET /chats/": chats,
    }


def export(service: Service, pause: float = 0.0, most: float = float("inf")) -> tuple[float, float, int]:
    """Read all messages; give the seconds to the first byte and to the last, and the bytes."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", service.port)
    connection.request("GET", "/messages/", headers={"x-api-key": KEY})
    response = connection.getresponse()
    response.read(1)
    first, size = time.perf_counter() - began, 1
    while time.perf_counter() - began < most and (piece := response.read(1 << 20)):
        size += len(piece)
        time.sleep(pause)
    connection.close()
    return first, time.perf_counter() - began, size


def measure_export(table: Table, services: list[Service], url: str, folder: Path, rounds: int) -> None:
    program = EmbeddedPostgres(folder / "unused")._programs / "psql"
    options = conninfo_to_dict(url)
    columns = "message_id, chat_id, content, rating, sent_at, role"
    statement = f"COPY (SELECT message_json({columns}) FROM messages ORDER BY seq) TO STDOUT"
    arguments = [program, "-h", options["host"], "-U", options["user"], "-d", options["dbname"], "-c", statement]
    ours, theirs, firsts, size = [], [], [], 0
    small, large = services
    with Memory(large) as memory:
        for _ in range(rounds):
            first, seconds, size = export(large)
            firsts.append(first)
            ours.append(seconds)
            began = time.perf_counter()
            subprocess.run([str(part) for part in arguments], stdout=subprocess.DEVNULL, check=True)
            theirs.append(time.perf_counter() - began)
    with Memory(small) as less:
        export(small)
    with Memory(large) as slow:
        export(large, pause=0.1, most=3)
    us, them = statistics.median(ours), statistics.median(theirs)
    figure = f"{us:.2f} s, {size / us / 1e6:.0f} MB/s"
    table.add("export of all messages", figure, f"psql COPY {them:.2f} s", f"{them / us:.2f}")
    table.add("  its first byte", f"{statistics.median(firsts) * 1000:.0f} ms")
    figure = f"{memory.peak / 2**20:.0f} MiB; to a slow reader {slow.peak / 2**20:.0f} MiB"
    table.add("  memory above idle", figure, f"with the fewest messages {less.peak / 2**20:.0f} MiB")


def measure_chats(table: Table, service: Service, limits: dict[str, float]) -> None:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        assert service.get("/chats/").status_code == 200
        times.append(time.perf_counter() - began)
    name = "first page of GET /chats/"
    # pgbench's connections share the cores, so that each waits for the others
    table.add(name, f"{statistics.median(times) * 1000:.1f} ms", f"pgbench {limits[name]:.0f}/s")


def measure_start(table: Table, folder: Path, data: Path) -> None:
    alone, times = [], []
    for _ in range(3):
        began = time.perf_counter()
        service = Service("persistence", folder, DATA_DIR=data, API_KEY=KEY)
        times.append(time.perf_counter() - began)
        service.stop()
        began = time.perf_counter()
        postgres = EmbeddedPostgres(data)
        postgres.start()
        alone.append(time.perf_counter() - began)
        postgres.stop()
    limit = f"PostgreSQL alone {statistics.median(alone):.2f} s"
    table.add("start of persistence, data there", f"{statistics.median(times):.2f} s", limit)
    port, times = free_port(), []
    for _ in range(3):
        began = time.perf_counter()
        own: dict[str, Any] = {"DATA_DIR": data, "API_KEY": KEY, "API_BASE_URL": f"http://127.0.0.1:{port}"}
        system = Service("chat", folder, "--with-persistence", "--demo-model", **own)
        times.append(time.perf_counter() - began)
        system.stop()
    table.add("start of both", f"{statistics.median(times):.2f} s", limit)


def chats_among(messages: int) -> int:
    """Give the number of chats that so many messages are in: each has enough for a page."""
    return min(CHATS, messages // 50)


def fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE messages DISABLE TRIGGER USER")
        values = {"content": CONTENT, "count": count, "chat": CHAT, "chats": chats_among(count)}
        connection.execute(FILL, values)
        connection.execute(SUMMARIZE)
        connection.execute("ALTER TABLE messages ENABLE TRIGGER USER")
        connection.execute("VACUUM ANALYZE")


def bare(stack: contextlib.ExitStack, server: str) -> tuple[int, str]:
    """Serve the bare view, and give its process and address."""
    port = free_port()
    code = BARE + server.format(port=port)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGQUIT)  # gunicorn's own threads may wait 30 s for what wrk has cut off
    wait_for(lambda: socket.create_connection(("127.0.0.1", port)), what="the bare view").close()
    return process.pid, f"http://127.0.0.1:{port}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument("--large", action="store_true", help="with 10,000,000 messages too")
    parser.add_argument("--smoke", action="store_true", help="only see that it runs")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    rounds, seconds, sizes = (3, 2, [10_000, 1_000_000]) if options.quick else (7, 4, [10_000, 1_000_000])
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
        assert postgres._process is not None
        postgres_pid = postgres._process.pid
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
        service, database = services[size], url.replace("dbname=postgres", f"dbname=messages{size}")

        say("requests")
        with psycopg.connect(database) as connection:
            ids = [str(row[0]) for row in connection.execute("SELECT message_id FROM messages LIMIT 1000")]
        last = "'GET', '/messages/?chat_id=' .. chat() .. '&order=desc&limit=50', headers"
        known = "({" + ",".join(f"'{one}'" for one in ids) + f"}})[math.random(1, {len(ids)})]"
        rate = f"""'PUT', '/messages/' .. {known}, headers, '{{"rating":true}}'"""

        def work(name: str, at: Service | tuple[int, str], request: str, chats: int = CHATS) -> Work:
            pid, base = at if isinstance(at, tuple) else (at.process.pid, at.url)
            return Work(name, Load(base, request, folder, chats=chats), pid, postgres_pid)

        echo = f"'POST', '/', headers, {BODY}"
        recent = work("the last 50 of a chat", service, last)
        others = {
            other: work(f"  among {other} messages", services[other], last, chats_among(other))
            for other in sizes
            if other != size
        }
        works = [
            work("A: a bare view under gunicorn's own threads", bare(stack, ITS_OWN_THREADS), echo),
            work("the same under our server", bare(stack, OUR_SERVER), echo),
            recent,
            *others.values(),
            # PostgreSQL has something to do after writes, for as long as the next ones run
            work("PUT a rating", service, rate),
            work("POST /messages/", service, f"'POST', '/messages/', headers, {BODY}"),
        ]
        limits = {name: pgbench(database, text, (seconds + 1) // 2, folder) for name, text in statements().items()}
        measure_requests(table, works, limits, rounds, seconds)
        for other, its in others.items():
            table.add(f"  {size} against {other} messages", "", "", f"{recent.cost() / its.cost():.2f}")
        say("the export")
        measure_export(table, [services[sizes[0]], service], database, folder, rounds // 3 + 1)
        measure_chats(table, service, limits)
        say("turns")
        spend_a = functools.partial(works[0].round, 1 if options.smoke else 2)
        measure_turns(table, services[sizes[0]], spend_a, folder, options.smoke, options.quick)
        say("starts")
        stack.close()
        if not options.smoke:
            with tempfile.TemporaryDirectory() as name:
                Path(name).chmod(0o711)
                measure_start(table, Path(name), Path(name) / "data")
    sys.stdout.write(f"{table.text()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
