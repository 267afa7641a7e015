"""The part of the benchmark that stores, reads, rates and exports."""

import subprocess
import time
from functools import partial
from statistics import median

import psycopg

from persistence import queries, store
from tests.measure import Run, Side, cpu_ms, interleave, memory_of
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


def cost(run: Run, load: Load, pid: int) -> tuple[float, float, float, float]:
    """Return the requests a second, for each the milliseconds of CPU of the service and of PostgreSQL, and the p99."""
    before = cpu_ms(pid), cpu_ms(run.postgres)
    answered, failed, p99 = load.run(CONNECTIONS, run.seconds)
    assert failed == 0, load.url
    own, its = cpu_ms(pid) - before[0], cpu_ms(run.postgres) - before[1]
    return answered / run.seconds, own / answered, its / answered, p99


def measure_requests(run: Run, ours: dict[str, Side], sides: dict[str, Side]) -> None:
    form = "{:.0f}/s, {:.2f} ms CPU, PostgreSQL {:.2f} ms, 99 % in {:.0f} ms"
    for name, request in REQUESTS.items():
        measures = {}
        for side, (_, service, *_) in (ours if name == CHATS_PAGE else sides).items():
            owner = ours.get(side, ours["ours"]).persistence  # peers have the same messages
            ids = [message["message_id"] for message in owner.get("/messages/?limit=1000").json()]
            measures[side] = partial(cost, run, Load(service.url, request, run.folder, ids), service.process.pid)
        interleave(1, measures)  # what is used first is slow once
        given = interleave(run.rounds, measures)
        statement = statements().get(name)
        limit = pgbench(run, statement, ours["ours"].url) if statement else ""
        run.table.add(name, form, given, limit)


def pgbench(run: Run, statement: str, url: str) -> str:
    """Return the transactions a second of a statement, prepared: what PostgreSQL alone can do."""
    if not (run.bin_path / "pgbench").exists():
        return "pgbench is not installed"
    script = run.folder / "pgbench.sql"
    script.write_text(f"\\set n random(0, {CHATS - 1})\n{statement}")
    options = f"-n -M prepared -c{CONNECTIONS} -j1 -T{run.seconds} -f {script}".split()
    output = subprocess.check_output([run.bin_path / "pgbench", *options, url], text=True)
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


def export(run: Run, side: Side, count: int) -> tuple[float, ...]:
    """Read all messages; return how many a second, the milliseconds to the first byte, the memory above idle in MiB,
    and the seconds of CPU of the service and of PostgreSQL."""
    service = side.persistence
    command = f"curl -sf -o /dev/null -w %{{time_total}},%{{time_starttransfer}} {service.url}/messages/ -H".split()
    before = cpu_ms(service.process.pid), cpu_ms(run.postgres)
    with memory_of(service) as memory:
        output = subprocess.check_output([*command, f"x-api-key: {KEY}"], text=True)
    took, first = map(float, output.split(","))
    used = cpu_ms(service.process.pid) - before[0], cpu_ms(run.postgres) - before[1]
    return count / took, first * 1000, max(memory) - memory[0], used[0] / 1000, used[1] / 1000


def measure_export(run: Run, sides: dict[str, Side]) -> None:
    """Beside it, the database's limit: psql with the statement that is ours."""
    psql = [f"{run.bin_path}/psql", sides["ours"].url, "-c", store.Selection((), {}, False).statement("copy_messages")]

    def count(url: str) -> int:
        with psycopg.connect(url) as connection:
            return int(connection.execute("SELECT count(*) FROM messages").fetchall()[0][0])

    def copy() -> tuple[float]:
        began = time.perf_counter()
        subprocess.run(psql, stdout=subprocess.DEVNULL, check=True)
        return (total / (time.perf_counter() - began),)

    total = count(sides["ours"].url)
    measures = {name: partial(export, run, side, count(side.url)) for name, side in sides.items()}
    given = interleave(run.rounds // 2 + 1, measures | {"psql": copy})
    copied = median(given.pop("psql")[0])
    form = "{:.0f}/s, first byte {:.0f} ms, {:.1f} MiB above idle, {:.1f} s CPU, PostgreSQL {:.1f} s"
    run.table.add(f"export all {total} messages", form, given, f"psql COPY {copied:.0f}/s")
