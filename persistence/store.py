"""One function for each query: what runs it comes first, rows or JSON come out. Knows no HTTP."""

import functools
import json
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from psycopg import sql

from persistence import queries
from persistence.database import Database

T = TypeVar("T")

LAST_SEQ = 2**63 - 1
MAX_PAGE_BYTES = 8 * 1024 * 1024  # of content; a larger page is streamed

FILTERS = {
    "chat_id": "chat_id = %(chat_id)s::uuid",
    "role": "role = %(role)s",
    "rating": "rating = %(rating)s",
    "unrated": "rating IS NULL",
    "since": "sent_at >= %(since)s",
    "until": "sent_at < %(until)s",
    "after": "seq > %(after)s",
    "before": "seq < %(after)s",
    "seqs": "seq = ANY(%(seqs)s)",
}


class Page(NamedTuple):
    """A page of messages: their JSON, separated; the last one's id; if more follow; if too large, only their seqs."""

    text: str | None
    last_id: str | None
    has_more: bool
    seqs: list[int] | None


class Selection(NamedTuple):
    """Which messages are meant: names of FILTERS, the values that they compare with, and the order."""

    filters: tuple[str, ...]
    values: Mapping[str, Any]
    descending: bool

    def statement(self, name: str) -> str:
        """Return the query `name` for these filters in this order."""
        return _compose(name, self.filters, self.descending)


@functools.cache  # as many as there are sets of filters: a few hundred
def _compose(name: str, filters: tuple[str, ...], descending: bool) -> str:
    conditions = [sql.SQL(FILTERS[filter_name]) for filter_name in filters] or [sql.SQL("TRUE")]
    composed = sql.SQL(queries.get(name)).format(
        filters=sql.SQL("\n            AND ").join(conditions), order=sql.SQL("DESC" if descending else "ASC")
    )
    return composed.as_string()


def insert_message(database: Database, message: Mapping[str, Any]) -> str | None:
    """Store a message and return it as JSON, or None if its message_id is taken."""
    return _value(database.run(queries.get("insert_message"), message))


def import_messages(database: Database, messages: Sequence[Mapping[str, Any]]) -> tuple[int, list[int] | None]:
    """Store messages, all or none, and return how many are new, and the lines whose message_id is something else's."""
    lines = json.dumps(messages, ensure_ascii=False, default=datetime.isoformat)
    return database.run(queries.get("import_messages"), {"lines": lines})[0]


def select_stored_message(database: Database, message: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return the stored message with this message_id as JSON, and whether it is the same, or None."""
    rows = database.run(queries.get("select_stored_message"), message)
    return (rows[0][0], rows[0][1]) if rows else None


def select_message(database: Database, message_id: str) -> str | None:
    """Return a message as JSON, or None."""
    return _value(database.run(queries.get("select_message"), {"message_id": message_id}))


def update_message(database: Database, message_id: str, changes: Mapping[str, Any]) -> str | None:
    """Change content, rating or both, and return the message as JSON.

    None if there is none, or if another field of `changes` is not as stored.
    """
    return _value(database.run(queries.get("update_message"), _fields(message_id, changes)))


def select_differences(database: Database, message_id: str, changes: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the fields of `changes` that never change and differ, or None if there is no such message."""
    rows = database.run(queries.get("select_differences"), _fields(message_id, changes))
    names = ("chat_id", "role", "sent_at")
    return [name for name, differs in zip(names, rows[0], strict=True) if differs] if rows else None


def _fields(message_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = ("chat_id", "content", "rating", "sent_at", "role")
    return {name: changes.get(name) for name in names} | {"message_id": message_id, "rates": "rating" in changes}


def delete_message(database: Database, message_id: str) -> bool:
    """Delete a message, and return whether it was there."""
    return bool(database.run(queries.get("delete_message"), {"message_id": message_id}, repeatable=False)[0][0])


def delete_chat(database: Database, chat_id: str) -> int:
    """Delete a chat's messages, and return how many there were."""
    return int(database.run(queries.get("delete_chat"), {"chat_id": chat_id}, repeatable=False)[0][0])


def select_message_seq(database: Database, message_id: str) -> int | None:
    """Return the message's number in the order in which they were stored, or None."""
    return _value(database.run(queries.get("select_message_seq"), {"message_id": message_id}))


def select_messages(database: Database, selection: Selection, limit: int, separator: str) -> Page:
    """Return the first `limit` messages of the selection, or their numbers if they are too large for one text."""
    params = {**selection.values, "limit": limit, "separator": separator, "max_bytes": MAX_PAGE_BYTES}
    return Page(*database.run(selection.statement("select_messages"), params)[0])


def copy_messages(database: Database, selection: Selection) -> Generator[list[bytes], None, None]:
    """Stream the messages of the selection in batches of JSON rows, each with its line break."""
    return database.stream(selection.statement("copy_messages"), selection.values)


def select_chat_seq(database: Database, chat_id: str) -> int | None:
    """Return the number of the message stored last in the chat, or None if there is no such chat."""
    return _value(database.run(queries.get("select_chat_seq"), {"chat_id": chat_id}))


def select_chats(database: Database, before: int, limit: int) -> tuple[str, str | None]:
    """Return up to `limit` chats before that number as a JSON array, and the last one's id if more follow."""
    rows = database.run(queries.get("select_chats"), {"before": before, "limit": limit})
    page = rows[:limit]
    return "[" + ",".join(chat for chat, _ in page) + "]", page[-1][1] if len(rows) > limit else None


def take_turns(database: Database, worker_id: str, message_ids: Sequence[str]) -> list[str]:
    """Mark turns as at work at a worker, and return those that are; the others are at work elsewhere."""
    params = {"worker_id": worker_id, "message_ids": list(message_ids)}
    return [message_id for (message_id,) in database.run(queries.get("take_turns"), params)]


def give_back_turn(database: Database, worker_id: str, message_id: str) -> None:
    """Take a worker's mark off a turn."""
    database.run(queries.get("give_back_turn"), {"worker_id": worker_id, "message_id": message_id})


def _value(rows: Sequence[tuple[T, ...]]) -> T | None:
    return rows[0][0] if rows else None
