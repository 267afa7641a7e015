import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from persistence import queries, store
from persistence.migrate import apply_schema

FILES = sorted((queries.SQL / "queries").glob("*.sql"))
CODE = "\n".join(path.read_text() for path in Path(store.__file__).parent.glob("*.py"))
ROWS = 30_000
CHATS = 300
LIMIT = 20

CHAT = "00000000-0000-4000-8000-000000000007"


@pytest.fixture(scope="module")
def connection(make_database: Callable[[], str]) -> Iterator[psycopg.Connection[Any]]:
    """A database whose chats are spread over all of it, with one message in a hundred rated."""
    with psycopg.connect(make_database(), autocommit=True) as connection:
        apply_schema(connection)
        connection.execute(
            """
            INSERT INTO messages (message_id, chat_id, content, rating, sent_at, role)
            SELECT
                ('00000000-0000-4000-9000-' || lpad(number::text, 12, '0'))::uuid,
                ('00000000-0000-4000-8000-' || lpad((number %% %(chats)s)::text, 12, '0'))::uuid,
                repeat('content ', 20),
                CASE WHEN number %% 100 = 0 THEN number %% 200 = 0 END,
                '2026-01-01 00:00:00+00'::timestamptz + number * interval '1 minute',
                CASE WHEN number / %(chats)s %% 2 = 0 THEN 'human' ELSE 'ai' END
            FROM generate_series(1, %(rows)s) AS number
            """,
            {"rows": ROWS, "chats": CHATS},
        )
        connection.execute("VACUUM ANALYZE messages")
        connection.execute("VACUUM ANALYZE chats")
        yield connection


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for step in plan.get("Plans", []):
        yield from steps(step)


def explain(connection: psycopg.Connection[Any], statement: Any, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a query, and give the steps that it took."""
    explained = psycopg.sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(
        statement if isinstance(statement, psycopg.sql.Composable) else psycopg.sql.SQL(statement)
    )
    row = connection.execute(explained, params).fetchone()
    assert row
    return list(steps(row[0][0]["Plan"]))


def rows_read(steps: list[dict[str, Any]], table: str = "messages") -> float:
    """Give how many rows were read of the table, those that a filter threw away included."""
    read = [step for step in steps if step.get("Relation Name") == table and "Scan" in step["Node Type"]]
    counts = [(step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) * step["Actual Loops"] for step in read]
    return float(sum(counts))


def kinds(steps: list[dict[str, Any]]) -> set[str]:
    return {step["Node Type"] for step in steps}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_one_statement_that_says_what_it_does(path: Path) -> None:
    first, *rest = path.read_text().splitlines()
    assert re.fullmatch(r"-- [A-Z].*\.", first)
    statement = "\n".join(line for line in rest if not line.startswith("--"))
    assert statement.strip()
    assert ";" not in statement


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_used_by_its_name(path: Path) -> None:
    assert re.search(rf'(get|statement)\("{path.stem}"\)', CODE)


def test_every_name_that_is_used_is_a_file() -> None:
    used = set(re.findall(r'(?:queries\.get|\.statement)\("(\w+)"\)', CODE))
    assert used == {path.stem for path in FILES}


def test_schema_files_are_numbered() -> None:
    numbers = [path.name.split("_")[0] for path in queries.schema_files()]
    assert numbers == [f"{number:03}" for number in range(1, len(numbers) + 1)]
    assert all(path.read_text().startswith("-- ") for path in queries.schema_files())


# A page reads an index in order and stops at its limit. With no filter, for a chat, for a rating that is all.
# `role` and `rating=null` can't promise it: what is of the other role, or rated, is read and thrown away on the way; so
# is what is of other chats, where a chat is so large a part of all that PostgreSQL thinks its messages soon found.
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize(
    ("filters", "most"),
    [
        ((), LIMIT + 1),
        (("chat_id",), LIMIT + 1),
        (("rating",), LIMIT + 1),
        (("unrated",), 1.5 * LIMIT),
        (("role",), LIMIT + 1 + CHATS),
        (("chat_id", "role"), 2.5 * LIMIT),
        (("chat_id", "unrated"), 1.5 * LIMIT),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_page_reads_few_more_rows_than_it_gives(
    connection: psycopg.Connection[Any], filters: tuple[str, ...], most: float, start: bool, order: str
) -> None:
    descending = order == "desc"
    values = {"chat_id": CHAT, "role": "ai", "rating": True, "after": ROWS // 2}
    filters += (("before" if descending else "after"),) if start else ()
    selection = store.Selection(filters, values, descending)
    params = {**values, "limit": LIMIT, "separator": ",", "max_bytes": store.MAX_PAGE_BYTES}
    taken = explain(connection, selection.statement("select_messages"), params)
    assert rows_read(taken) <= most
    assert kinds(taken).isdisjoint({"Seq Scan", "Sort", "Incremental Sort", "Bitmap Heap Scan"})
    assert "Index Scan" in kinds(taken)


# `since` and `until` can't promise it: the order is that of storing, in which times may be anyhow. PostgreSQL either
# reads the period by the index on sent_at and sorts it, or reads in order and throws away what is outside; it takes
# what it thinks is cheaper. A short period is read by its index.
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_short_period_is_read_by_its_index(connection: psycopg.Connection[Any], order: str) -> None:
    values = {"since": "2026-01-15T00:00:00Z", "until": "2026-01-15T00:20:00Z"}
    selection = store.Selection(("since", "until"), values, order == "desc")
    params = {**values, "limit": LIMIT, "separator": ",", "max_bytes": store.MAX_PAGE_BYTES}
    taken = explain(connection, selection.statement("select_messages"), params)
    assert rows_read(taken) == 20
    assert "messages_sent_at" in {step.get("Index Name") for step in taken}


# What is sorted is made to JSON, and kept, before its first row can be sent. Of an export with filters PostgreSQL may
# think that the cheapest; of all messages, and of a page that was too large, it must not.
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(("name", "most"), [("all", ROWS), ("seqs", 1000)])
def test_an_export_is_read_in_order(connection: psycopg.Connection[Any], name: str, most: int, order: str) -> None:
    values = {"seqs": list(range(100, 1100))}
    selection = store.Selection(("seqs",) if name == "seqs" else (), values, order == "desc")
    copy = selection.statement("copy_messages")
    query = re.sub(r"(?s).*?COPY \((.*)\) TO STDOUT.*", r"\1", copy)  # COPY itself can't be explained
    taken = explain(connection, query, values)
    assert rows_read(taken) == most
    assert kinds(taken) <= {"Index Scan"}


@pytest.mark.parametrize("before", [store.LAST_SEQ, ROWS + 100])
def test_a_page_of_chats_reads_few_rows(connection: psycopg.Connection[Any], before: int) -> None:
    with connection.transaction(force_rollback=True):
        connection.execute(
            """
            INSERT INTO messages (message_id, chat_id, content, sent_at, role)
            SELECT gen_random_uuid(), gen_random_uuid(), 'content', now(), 'human'
            FROM generate_series(1, 3000)
            """
        )
        connection.execute("ANALYZE messages, chats")
        taken = explain(connection, queries.get("select_chats"), {"before": before, "limit": LIMIT})
    assert rows_read(taken, "chats") <= LIMIT + 1
    assert rows_read(taken) <= 3 * (LIMIT + 1)
    assert "Seq Scan" not in kinds(taken)


@pytest.mark.parametrize(
    "name",
    [
        "select_message",
        "select_message_seq",
        "select_stored_message",
        "select_differences",
        "update_message",
        "delete_message",
    ],
)
def test_one_message_is_found_by_its_id(connection: psycopg.Connection[Any], name: str) -> None:
    params = dict.fromkeys(("chat_id", "content", "rating", "sent_at", "role", "rates"))
    with connection.transaction(force_rollback=True):
        taken = explain(connection, queries.get(name), params | {"message_id": f"00000000-0000-4000-9000-{100:012}"})
    assert "messages_pkey" in {step.get("Index Name") for step in taken}
    assert "Seq Scan" not in kinds(taken)


def test_a_chat_is_deleted_by_its_index(connection: psycopg.Connection[Any]) -> None:
    with connection.transaction(force_rollback=True):
        taken = explain(connection, queries.get("delete_chat"), {"chat_id": CHAT})
    assert rows_read(taken) == ROWS / CHATS
    assert "Seq Scan" not in kinds(taken)


def test_a_plan_for_all_limits_is_not_worse(connection: psycopg.Connection[Any]) -> None:
    """After five runs of a prepared statement, PostgreSQL may settle on one plan for all values."""
    selection = store.Selection(("chat_id",), {"chat_id": CHAT}, descending=False)
    params = {"chat_id": CHAT, "limit": LIMIT, "separator": ",", "max_bytes": store.MAX_PAGE_BYTES}
    statement = f"EXPLAIN (ANALYZE, FORMAT JSON) {selection.statement('select_messages')}"
    for _ in range(8):
        row = connection.execute(statement, params, prepare=True).fetchone()
        assert row
        assert rows_read(list(steps(row[0][0]["Plan"]))) <= LIMIT + 1


def test_times_are_told_in_utc_whatever_the_session(connection: psycopg.Connection[Any]) -> None:
    message_id = f"00000000-0000-4000-9000-{100:012}"
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        connection.execute("SET LOCAL DateStyle = 'German, DMY'")
        row = connection.execute(queries.get("select_message"), {"message_id": message_id}).fetchone()
    assert row
    assert json.loads(row[0])["sent_at"] == "2026-01-01T01:40:00.000000+00:00"
