import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from persistence import queries, store
from persistence.migrate import apply_schema

FILES = sorted((queries.SQL / "queries").glob("*.sql"))
CODE = "\n".join(path.read_text() for path in Path(store.__file__).parent.glob("*.py"))
ROWS, CHATS, LIMIT = 30_000, 300, 20
MESSAGE, CHAT = f"00000000-0000-4000-9000-{100:012}", f"00000000-0000-4000-8000-{7:012}"
PAGE = {"limit": LIMIT, "separator": ",", "max_bytes": store.MAX_PAGE_BYTES}
FILL = """
    INSERT INTO messages (message_id, chat_id, content, rating, sent_at, role)
    SELECT
        ('00000000-0000-4000-9' || %(fill)s || lpad(number::text, 12, '0'))::uuid,
        ('00000000-0000-4000-8' || %(fill)s || lpad((number %% %(chats)s)::text, 12, '0'))::uuid,
        repeat('content ', 20),
        CASE WHEN number %% 100 = 0 THEN number %% 200 = 0 END,
        '2026-01-01 00:00:00+00'::timestamptz + number * interval '1 minute',
        CASE WHEN number / %(chats)s %% 2 = 0 THEN 'human' ELSE 'ai' END
    FROM generate_series(1, %(rows)s) AS number
"""

Rows = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def connection(make_database: Callable[[], str]) -> Iterator[Rows]:
    """A database whose chats are spread over all of it, with one message in a hundred rated."""
    with psycopg.connect(make_database(), autocommit=True) as connection:
        apply_schema(connection)
        connection.execute(FILL, {"fill": "000-", "rows": ROWS, "chats": CHATS})
        connection.execute("VACUUM ANALYZE messages")
        connection.execute("VACUUM ANALYZE chats")
        yield connection


@pytest.fixture
def undone(connection: Rows) -> Iterator[Rows]:
    """The same, in a transaction that is undone."""
    with connection.transaction(force_rollback=True):
        yield connection


def explain(connection: Rows, statement: str, params: dict[str, Any], **options: Any) -> tuple[Counter[str], set[str]]:
    """Run a query; return how many rows of each table it read, filtered ones included, and what it read them with."""
    explained = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(sql.SQL(statement))
    row = connection.execute(explained, params, **options).fetchone()
    assert row
    read, used, steps = Counter[str](), set(), [row[0][0]["Plan"]]
    while steps:
        step = steps.pop()
        steps += step.get("Plans", [])
        used |= {step["Node Type"], step.get("Index Name", "")}
        if "Scan" in step["Node Type"]:
            rows = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
            read[step.get("Relation Name", "")] += round(rows * step["Actual Loops"])
    return read, used


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_one_statement_that_says_what_it_does_and_is_used_by_its_name(path: Path) -> None:
    first, *rest = path.read_text().splitlines()
    assert re.fullmatch(r"-- [A-Z].*\.", first)
    assert ";" not in "".join(line for line in rest if not line.startswith("--"))
    assert re.search(rf'(get|statement)\("{path.stem}"\)', CODE)


# A page reads an index in order and stops at its limit. With no filter, for a chat, for a rating that is all.
# `role` and `rating=null` can't promise it: what is of the other role, or rated, is read and thrown away on the way; so
# is what is of other chats, where a chat is so large a part of all that PostgreSQL thinks its messages soon found.
MOST = {"": LIMIT + 1, "chat_id": LIMIT + 1, "rating": LIMIT + 1, "unrated": 1.5 * LIMIT, "role": LIMIT + 1 + CHATS}
MOST |= {"chat_id role": 2.5 * LIMIT, "chat_id unrated": 1.5 * LIMIT}


@pytest.mark.parametrize("filters", MOST)
@pytest.mark.parametrize("start", ["", "after", "before"])
def test_a_page_reads_few_more_rows_than_it_gives(connection: Rows, filters: str, start: str) -> None:
    values = {"chat_id": CHAT, "role": "ai", "rating": True, "after": ROWS // 2}
    selection = store.Selection(tuple(f"{filters} {start}".split()), values, descending=start == "before")
    for _ in range(8):  # after five runs PostgreSQL may settle on one plan for all values
        read, used = explain(connection, selection.statement("select_messages"), values | PAGE, prepare=True)
        assert read["messages"] <= MOST[filters]
        assert used.isdisjoint({"Seq Scan", "Sort", "Incremental Sort", "Bitmap Heap Scan"})


# `since` and `until` can't promise it: the order is that of storing, in which times may be anyhow. PostgreSQL either
# reads the period by the index on sent_at and sorts it, or reads in order and throws away what is outside; it takes
# what it thinks is cheaper. A short period is read by its index.
@pytest.mark.parametrize("descending", [False, True])
def test_a_short_period_is_read_by_its_index(connection: Rows, descending: bool) -> None:
    values = {"since": "2026-01-15T00:00:00Z", "until": "2026-01-15T00:20:00Z"}
    selection = store.Selection(("since", "until"), values, descending)
    read, used = explain(connection, selection.statement("select_messages"), values | PAGE)
    assert read["messages"] == 20
    assert "messages_sent_at" in used


def query_of_copy(selection: store.Selection) -> str:
    """Return the query inside COPY, which itself can't be explained."""
    return re.sub(r"(?s).*?COPY \((.*)\) TO STDOUT.*", r"\1", selection.statement("copy_messages"))


# What is sorted is made to JSON, and kept, before its first row can be sent. Of an export with filters PostgreSQL may
# think that the cheapest; of all messages, and of a page that was too large, it must not.
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("filters", "most"), [((), ROWS), (("seqs",), 1000)])
def test_an_export_is_read_in_order(connection: Rows, filters: tuple[str, ...], most: int, descending: bool) -> None:
    values = {"seqs": list(range(100, 1100))}
    read, used = explain(connection, query_of_copy(store.Selection(filters, values, descending)), values)
    assert read["messages"] == most
    assert "Sort" not in used


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("disabled", ["", "indexscan", "indexscan bitmapscan", "seqscan sort", "indexscan hashagg"])
def test_pages_and_exports_are_in_order_whatever_the_plan(undone: Rows, disabled: str, descending: bool) -> None:
    for name in disabled.split():
        undone.execute(sql.SQL("SET LOCAL {} = off").format(sql.Identifier(f"enable_{name}")))
    undone.execute("SET LOCAL debug_parallel_query = on")
    selection = store.Selection(("role",), {"role": "ai"}, descending)
    page = undone.execute(selection.statement("select_messages"), {"role": "ai"} | PAGE | {"limit": ROWS}).fetchone()
    export = undone.execute(query_of_copy(selection), {"role": "ai"}).fetchall()
    assert page
    times = [message["sent_at"] for message in json.loads(f"[{page[0]}]")]
    assert times == [json.loads(row)["sent_at"] for (row,) in export] == sorted(times, reverse=descending)


@pytest.mark.parametrize("before", [store.LAST_SEQ, ROWS + 100])
def test_a_page_of_chats_reads_few_rows(undone: Rows, before: int) -> None:
    undone.execute(FILL, {"fill": "001-", "rows": 3000, "chats": 3000})
    undone.execute("ANALYZE messages, chats")
    read, used = explain(undone, queries.get("select_chats"), {"before": before, "limit": LIMIT})
    assert read["chats"] <= LIMIT + 1
    assert read["messages"] <= 3 * (LIMIT + 1)
    assert "Seq Scan" not in used


@pytest.mark.parametrize("name", [path.stem for path in FILES if re.search(r"WHERE \w+_id = %\(", path.read_text())])
def test_one_message_and_one_chat_are_found_by_their_ids(undone: Rows, name: str) -> None:
    params = dict.fromkeys(("content", "rating", "sent_at", "role", "rates"))
    params |= {"message_id": MESSAGE, "chat_id": CHAT, "worker_id": CHAT}
    read, used = explain(undone, queries.get(name), params)
    assert read["messages"] <= ROWS / CHATS
    assert "Seq Scan" not in used


def test_a_turn_is_marked_without_a_look_at_all_marks(undone: Rows) -> None:
    mark = """
        INSERT INTO turns
        SELECT gen_random_uuid(), %(worker_id)s, now() - %(age)s * interval '1 s'
        FROM generate_series(1, %(rows)s)
    """
    for rows, age in ((5000, 30), (3, 90)):
        undone.execute(mark, {"worker_id": CHAT, "age": age, "rows": rows})
    read, used = explain(undone, queries.get("take_turns"), {"worker_id": CHAT, "message_ids": [MESSAGE]})
    assert read["turns"] <= 6  # old ones, each of which is found and deleted
    assert "Seq Scan" not in used


def test_times_are_told_in_utc_whatever_the_session(undone: Rows) -> None:
    undone.execute("SET LOCAL TimeZone = 'Asia/Kathmandu'; SET LOCAL DateStyle = 'German, DMY'")
    row = undone.execute(queries.get("select_message"), {"message_id": MESSAGE}).fetchone()
    assert row
    assert json.loads(row[0])["sent_at"] == "2026-01-01T01:40:00.000000+00:00"


@pytest.mark.slow
def test_a_statement_stores_many_messages_in_one_chat_as_fast_as_in_many(make_database: Callable[[], str]) -> None:
    seconds = Counter[int]()
    with psycopg.connect(make_database(), autocommit=True, options="-c statement_timeout=180s") as connection:
        apply_schema(connection)
        for fill, chats in (("000-", 1000), ("001-", 1), ("002-", 1000)):
            began = time.monotonic_ns()
            connection.execute(FILL, {"fill": fill, "chats": chats, "rows": 200_000})
            seconds[chats] = max(time.monotonic_ns() - began, seconds[chats])
        counts = connection.execute("SELECT count(*), sum(message_count) FROM chats").fetchone()
    assert counts == (2001, 600_000)
    assert seconds[1] < 2 * seconds[1000]
