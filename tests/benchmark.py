"""python -m tests.benchmark: what our services cost, beside what people would write instead, and an older version.

Starts everything itself on the loopback address, and prints one table, and what each round gave. Rounds interleave what
is compared, and medians count, since machines are noisy. CPU is that of all processes of a service, and of PostgreSQL.
What people would write is in tests/peers, over the same database: pip install -r tests/peers/requirements.txt
"""

import argparse
import contextlib
import importlib.util
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from persistence.embedded import EmbeddedPostgres
from tests.benchmark_import import measure_import
from tests.benchmark_requests import measure_export, measure_requests
from tests.benchmark_turns import measure_turns
from tests.measure import Run, Side, Table, machine, start
from tests.services import KEY, ROOT
from tests.wrk import CHAT, CHATS, CONTENT

PEERS = {
    "SQLAlchemy": ("tests.peers.sqlalchemy_app", "tests.peers.turn_app"),
    "asyncpg": ("tests.peers.asyncpg_app", None),
}
NEEDED = ("fastapi", "uvicorn", "uvloop", "httptools", "sqlalchemy", "asyncpg", "orjson", "httpx")
FILL = """
INSERT INTO messages (message_id, chat_id, content, sent_at, role)
SELECT gen_random_uuid(), (%(chat)s || lpad(to_hex(n %% %(chats)s), 12, '0'))::uuid, %(content)s,
    now() - interval '1 day' + n * interval '1 ms', CASE WHEN n / %(chats)s %% 2 = 0 THEN 'human' ELSE 'ai' END
FROM generate_series(0, %(count)s - 1) AS n
"""

# rounds, seconds, messages that are there, messages that are imported, callers
Extent = tuple[int, int, int, int, list[int]]
FULL: Extent = (5, 3, 1_000_000, 1_000_000, [200, 500, 1000])
QUICK: Extent = (3, 2, 1_000_000, 100_000, [200, 500, 1000])
SMOKE: Extent = (1, 1, 2000, 2000, [10])


def fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL, {"content": CONTENT, "count": count, "chat": CHAT, "chats": min(CHATS, count // 50)})
        connection.execute("VACUUM ANALYZE")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    add = partial(parser.add_argument, dest="extent", action="store_const", default=FULL)
    add("--quick", const=QUICK, help="fewer rounds, and a smaller import")
    add("--smoke", const=SMOKE, help="only see that it runs")
    parser.add_argument("--before", type=Path, metavar="DIR", help="measure the version whose code is in DIR, too")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"no peers, {missing[0]} is missing: pip install -r tests/peers/requirements.txt\n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    roots = {"ours": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o711)
        began, text = time.time(), measure(roots, {} if missing else PEERS, options.extent, folder, stack)
    sys.stdout.write(f"{text}\nThe run took {(time.time() - began) / 60:.0f} minutes.\n")


def measure(
    roots: dict[str, Path], peers: dict[str, Any], extent: Extent, folder: Path, stack: contextlib.ExitStack
) -> str:
    rounds, seconds, messages, imported, crowds = extent
    own = EmbeddedPostgres(folder / "data")
    server_url = own.start()
    stack.callback(own.stop)

    def side(name: str, root: Path) -> Side:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = make_conninfo(server_url, dbname=name)
        service = start("persistence", folder, PYTHONPATH=root, DATABASE_URL=url, API_KEY=KEY)
        return Side(root, stack.enter_context(service), url)

    def peer(store: str, chat: str | None) -> Side:
        """Over the same database, with as many connections."""
        at = conninfo_to_dict(ours["ours"].url)
        where = {"PGHOST": at["host"], "PGUSER": at["user"], "PGDATABASE": at["dbname"], "API_KEY": KEY}
        return Side(ROOT, stack.enter_context(start(store, folder, **where)), ours["ours"].url, chat)

    ours = {name: side(name, root) for name, root in roots.items()}
    for _, _, url, _ in ours.values():
        fill(url, messages)
    sides = ours | {name: peer(*apps) for name, apps in peers.items()}
    run = Run(Table(list(sides)), folder, own._server.get_pid(), own._server.bin_path, rounds, seconds)
    measure_requests(run, ours, sides)
    measure_export(run, sides)
    measure_import(run, ours["ours"], side("empty", ROOT), imported)
    measure_turns(run, sides, crowds)
    version = subprocess.check_output([run.bin_path / "postgres", "--version"], text=True).strip()
    return f"{machine(version)}{messages} messages at first\n\n{run.table.text()}"


if __name__ == "__main__":
    main(sys.argv[1:])
