"""The part of the benchmark that stores, reads, rates and exports."""

import subprocess
import time
from functools import partial
from pathlib import Path
from statistics import median

import psycopg

from persistence import queries, store
from tests.measure import Side, Table, cpu_ms, interleave, memory_of
from tests.services import KEY
from tests.wrk import CHAT, CHATS, CONTENT, POST, Load

CONNECTIONS = 16
CHATS_PAGE = "the first page of chats"
REQUESTS = {
    "the last 50 of a chat": "'GET', '/messages/?chat_id=' .. chat() .. '&order=desc&limit=50', headers",
    "rate a message": """'PUT', '/messages/' .. id(), headers, '{"rating":' .. rating() .. '}'""",
    "store a message": POST,
    CHATS_PAGE: "'GET', '/chats/', headers",
}


def cost(load: Load, pid: int, postgres: int, seconds: int) -> tuple[float, float, float, float]:
    """Return the requests a second, for each the milliseconds of CPU of the service and of PostgreSQL, and the p99."""
    before = cpu_ms(pid), cpu_ms(postgres)
    answered, failed, p99 = load.run(CONNECTIONS, seconds)
    assert failed == 0, load.url
    return answered / seconds, (cpu_ms(pid) - before[0]) / answered, (cpu_ms(postgres) - before[1]) / answered, p99


def measure_requests(
    table: Table,
    ours: dict[str, Side],
    sides: dict[str, Side],
    postgres: int,
    bin_path: Path,
    folder: Path,
    rounds: int,
    seconds: int,
) -> None:
    form = "{:.0f}/s, {:.2f} ms CPU, PostgreSQL {:.2f} ms, 99 % in {:.0f} ms"
    for name, request in REQUESTS.items():
        measures = {}
        for side, (_, service, *_) in (ours if name == CHATS_PAGE else sides).items():
            owner = ours.get(side, ours["ours"]).persistence  # peers have the same messages
            ids = [message["message_id"] for message in owner.get("/messages/?limit=1000").json()]
            measures[side] = partial(
                cost, Load(service.url, request, folder, ids), service.process.pid, postgres, seconds
            )
        interleave(1, measures)  # what is used first is slow once
        given = interleave(rounds, measures)
        statement = statements().get(name)
        limit = pgbench(statement, bin_path, ours["ours"].url, seconds, folder) if statement else ""
        table.add(name, form, given, limit)


def pgbench(statement: str, bin_path: Path, url: str, seconds: int, folder: Path) -> str:
    """Return the transactions a second of a statement, prepared: what PostgreSQL alone can do."""
    if not (bin_path / "pgbench").exists():
        return "pgbench is not installed"
    script = folder / "pgbench.sql"
    script.write_text(f"\\set n random(0, {CHATS - 1})\n{statement}")
    options = f"-n -M prepared -c{CONNECTIONS} -j1 -T{seconds} -f {script}".split()
    done = subprocess.run([bin_path / "pgbench", *options, url], capture_output=True, text=True, check=True)
    rate = float(next(line for line in done.stdout.splitlines() if line.startswith("tps")).split()[2])
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


def export(side: Side, count: int, postgres: int) -> tuple[float, ...]:
    """Read all messages; return how many a second, the milliseconds to the first byte, the memory above idle in MiB,
    and the seconds of CPU of the service and of PostgreSQL."""
    service = side.persistence
    command = f"curl -sf -o /dev/null -w %{{time_total}},%{{time_starttransfer}} {service.url}/messages/ -H".split()
    before = cpu_ms(service.process.pid), cpu_ms(postgres)
    with memory_of(service) as memory:
        output = subprocess.run([*command, f"x-api-key: {KEY}"], capture_output=True, text=True, check=True).stdout
    took, first = map(float, output.split(","))
    used = cpu_ms(service.process.pid) - before[0], cpu_ms(postgres) - before[1]
    return count / took, first * 1000, max(memory) - memory[0], used[0] / 1000, used[1] / 1000


def measure_export(table: Table, sides: dict[str, Side], postgres: int, bin_path: Path, rounds: int) -> None:
    """Beside it, the database's limit: psql with the statement that is ours."""
    psql = [f"{bin_path}/psql", sides["ours"].url, "-c", store.Selection((), {}, False).statement("copy_messages")]
    measures = {}
    for name, side in sides.items():
        with psycopg.connect(side.url) as connection:
            ((count,),) = connection.execute("SELECT count(*) FROM messages").fetchall()
        measures[name] = partial(export, side, count, postgres)

    def copy() -> tuple[float]:
        began = time.perf_counter()
        subprocess.run(psql, stdout=subprocess.DEVNULL, check=True)
        return (count / (time.perf_counter() - began),)

    given = interleave(rounds, measures | {"psql": copy})
    copied = median(given.pop("psql")[0])
    form = "{:.0f}/s, first byte {:.0f} ms, {:.1f} MiB above idle, {:.1f} s CPU, PostgreSQL {:.1f} s"
    table.add(f"export all {count} messages", form, given, f"psql COPY {copied:.0f}/s")
