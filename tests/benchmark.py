"""python -m tests.benchmark: what our services cost, beside an older version of them and their parts alone.

Starts everything itself on the loopback address, and prints one table. Rounds interleave what is compared, and medians
count, since machines are noisy. A request's figure begins with the CPU time of the service's processes; a bare view
is one that parses a JSON body and answers with it.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from persistence import queries, store
from persistence.embedded import EmbeddedPostgres
from tests.benchmark_import import measure_import
from tests.benchmark_turns import measure_turns
from tests.chats import running
from tests.measure import Side, Table, cpu_seconds, interleave, memory_of
from tests.services import KEY, ROOT, Service, free_port, wait_for
from tests.wrk import CHAT, CHATS, CONTENT, MESSAGE, POST, Load

CONNECTIONS = 16
BARE = """
from flask import Flask, request
app = Flask("bare")
@app.post("/")
def echo():
    return request.get_json()
"""
THREADS = ["-m", "gunicorn", "bare:app", "--workers=2", "--threads=8", "--reuse-port", "--keep-alive=75"]
OUR_WAY = """
from gevent import monkey
monkey.patch_all()
import os
from bare import app
from persistence.web import server
port = int(os.environ["PORT"])
server.serve(lambda: app, host="127.0.0.1", port=port, workers=2, connections=1000, graceful_timeout=5)
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
COLUMNS = "message_id, chat_id, content, rating, sent_at, role"
EXPORT = f"COPY (SELECT message_json({COLUMNS}) FROM messages ORDER BY seq LIMIT {{limit}}) TO STDOUT"
REQUESTS = {
    "the last 50 of a chat": "'GET', '/messages/?chat_id=' .. chat() .. '&order=desc&limit=50', headers",
    "rate a message": """'PUT', '/messages/' .. id(), headers, '{"rating":true}'""",
    "store a message": POST,
    "the first page of chats": "'GET', '/chats/', headers",
}


# rounds, seconds, messages that are there, messages that are imported, callers
Extent = tuple[int, int, int, int, list[int]]
FULL: Extent = (7, 4, 1_000_000, 1_000_000, [200, 500, 1000])
QUICK: Extent = (3, 2, 1_000_000, 100_000, [200, 500, 1000])
SMOKE: Extent = (1, 1, 2000, 2000, [10])


def cost(load: Load, pid: int, postgres_pid: int, seconds: int) -> tuple[float, float, float]:
    """Return the milliseconds of CPU a request, of a service and of PostgreSQL, and the requests a second."""
    before = cpu_seconds(pid), cpu_seconds(postgres_pid, postgres=True)
    answered, failed, _ = load.run(CONNECTIONS, seconds)
    assert failed == 0, load.url
    ours, postgres = cpu_seconds(pid) - before[0], cpu_seconds(postgres_pid, postgres=True) - before[1]
    return ours / answered * 1000, postgres / answered * 1000, answered / seconds


def measure_requests(table: Table, sides: list[Side], postgres: Any, folder: Path, rounds: int, seconds: int) -> None:
    rows: dict[str, list[tuple[Load, int]]] = {name: [] for name in REQUESTS}
    for side in sides:
        service = side.persistence
        ids = [message["message_id"] for message in service.get("/messages/?limit=1000").json()]
        for name, request in REQUESTS.items():
            rows[name].append((Load(service.url, request, folder, ids), service.process.pid))
    with bare(THREADS, folder) as threads, bare(["-c", OUR_WAY], folder) as ours:
        rows |= {"a bare view under gunicorn's own threads": [threads], "a bare view under our server": [ours]}
        measures = [partial(cost, *work, postgres.get_pid(), seconds) for row in rows.values() for work in row]
        interleave(1, measures)  # what is used first is slow once
        given = iter(interleave(rounds, measures))
    for name, row in rows.items():
        costs = [[median(values) for values in next(given)] for _ in row]
        figures = [f"{ours:.3f} ms CPU, {rate:.0f}/s, PostgreSQL {its:.2f} ms" for ours, its, rate in costs]
        statement = statements().get(name)
        table.add(name, figures, pgbench(statement, postgres, sides[0].url, seconds, folder) if statement else "")


def pgbench(statement: str, postgres: Any, url: str, seconds: int, folder: Path) -> str:
    """Return the transactions a second of a statement, prepared."""
    script = folder / "pgbench.sql"
    script.write_text(f"\\set n random(0, {CHATS - 1})\n{statement}")
    options = f"-n -M prepared -c{CONNECTIONS} -j1 -T{seconds} -f {script}".split()
    command = [str(postgres.bin_path / "pgbench"), *options, url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = float(next(line for line in output.splitlines() if line.startswith("tps")).split()[2])
    return f"pgbench {rate:.0f}/s"


def statements() -> dict[str, str]:
    """Return the statements behind REQUESTS, with pgbench's variable n for their parameters."""
    chat = f"('{CHAT}' || lpad(to_hex(:n::int), 12, '0'))"
    new = {"message_id": "gen_random_uuid()::text", "chat_id": chat, "content": f"'{CONTENT}'", "rating": "NULL"}
    new |= {"sent_at": "'2026-11-23T16:04:05.12Z'", "role": "'human'"}
    one = "(SELECT message_id FROM messages WHERE seq = :n + 1)"
    change = dict.fromkeys(new, "NULL") | {"message_id": one, "rates": "TRUE", "rating": "'true'"}
    page = {"chat_id": chat, "limit": "50", "separator": "','", "max_bytes": str(store.MAX_PAGE_BYTES)}
    last = store.Selection(("chat_id",), {}, True).statement("select_messages") % page
    texts = last, queries.get("update_message") % change, queries.get("insert_message") % new
    return dict(zip(REQUESTS, texts, strict=False))


def export(service: Service) -> tuple[float, ...]:
    """Read all messages; return the seconds to the last byte and to the first, and the memory above idle, in MiB."""
    command = f"curl -sf -o /dev/null -w %{{time_total}},%{{time_starttransfer}} {service.url}/messages/ -H".split()
    with memory_of(service) as memory:
        output = subprocess.run([*command, f"x-api-key: {KEY}"], capture_output=True, text=True, check=True).stdout
    return *map(float, output.split(",")), max(memory) - memory[0]


def measure_export(table: Table, sides: list[Side], psql: list[str], rounds: int) -> None:
    def copy() -> tuple[float]:
        began = time.perf_counter()
        subprocess.run(psql, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - began,)

    *given, (copied,) = interleave(rounds, [*(partial(export, side.persistence) for side in sides), copy])
    costs = [[median(values) for values in columns] for columns in given]
    figures = [
        f"{took:.2f} s, first byte {first * 1000:.0f} ms, {more:.1f} MiB above idle" for took, first, more in costs
    ]
    table.add("export all messages", figures, f"psql COPY {median(copied):.2f} s")


def measure_start(table: Table, roots: list[Path], folder: Path, rounds: int) -> None:
    own: dict[str, Any] = {"API_KEY": KEY, "API_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    for module, *flags in (["persistence"], ["chat", "--with-persistence", "--demo-model"]):

        def once(root: Path, module: str = module, flags: list[str] = flags) -> tuple[float]:
            began = time.perf_counter()
            own["DATA_DIR"] = folder / str(roots.index(root))
            service = Service(module, folder, *flags, PYTHONPATH=root, **own)
            took = time.perf_counter() - began
            service.stop()
            return (took,)

        measures = [partial(once, root) for root in roots]
        interleave(1, measures)  # makes the data
        figures = [f"{median(times):.2f} s" for (times,) in interleave(rounds, measures)]
        table.add(f"start of {' '.join([module, *flags])}", figures)


def fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE messages DISABLE TRIGGER USER")
        connection.execute(FILL, {"content": CONTENT, "count": count, "chat": CHAT, "chats": min(CHATS, count // 50)})
        connection.execute(SUMMARIZE)
        connection.execute("ALTER TABLE messages ENABLE TRIGGER USER")
        connection.execute("VACUUM ANALYZE")


@contextlib.contextmanager
def bare(arguments: list[str], folder: Path) -> Iterator[tuple[Load, int]]:
    """Serve the bare view, and return what loads it, and its process."""
    (folder / "bare.py").write_text(BARE)
    port, output = free_port(), (folder / "bare.log").open("a")
    env = os.environ | {"PYTHONPATH": str(ROOT), "PORT": str(port), "GUNICORN_CMD_ARGS": "--no-control-socket"}
    with output, subprocess.Popen([sys.executable, *arguments], env=env, cwd=folder, stderr=output) as process:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)), what="the bare view").close()
        yield Load(f"http://127.0.0.1:{port}", f"'POST', '/', headers, {MESSAGE}", folder), process.pid
        process.send_signal(signal.SIGQUIT)  # gunicorn's own threads may wait 30 s for what wrk has cut off


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    add = partial(parser.add_argument, dest="extent", action="store_const", default=FULL)
    add("--quick", const=QUICK, help="fewer rounds, and a smaller import")
    add("--smoke", const=SMOKE, help="only see that it runs")
    parser.add_argument("--before", type=Path, metavar="DIR", help="measure the version whose code is in DIR, too")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    roots = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)
        table = measure(roots, options.extent, folder, stack)
    sys.stdout.write(f"{table.text()}\n")


def measure(roots: dict[str, Path], extent: Extent, folder: Path, stack: contextlib.ExitStack) -> Table:
    rounds, seconds, messages, imported, crowds = extent
    own = EmbeddedPostgres(folder / "data")
    server_url = own.start()
    stack.callback(own.stop)
    postgres = own._server

    def side(name: str, root: Path) -> Side:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = make_conninfo(server_url, dbname=name)
        service = running("persistence", folder, PYTHONPATH=root, DATABASE_URL=url, API_KEY=KEY)
        return Side(root, stack.enter_context(service), url)

    table = Table(list(roots))
    sides = [side(name, root) for name, root in roots.items()]
    for _, _, url in sides:
        fill(url, messages)
    measure_requests(table, sides, postgres, folder, rounds, seconds)
    psql = [str(postgres.bin_path / "psql"), sides[0].url, "-c"]
    measure_export(table, sides, [*psql, EXPORT.format(limit="ALL")], rounds // 2 + 1)
    measure_import(table, side("empty", ROOT), [*psql, EXPORT.format(limit=imported)], imported, folder)
    measure_turns(table, sides, folder, rounds, seconds, crowds)
    measure_start(table, list(roots.values()), folder, rounds // 2 + 1)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
