"""One function for each query: what runs it comes first, rows or JSON come out. Knows no HTTP."""

import functools
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, cast

from psycopg import sql

from persistence import queries
from persistence.database import Database

LAST_SEQ = 2**63 - 1
MAX_PAGE_BYTES = 8 * 1024 * 1024  # of content; a larger page is streamed

FILTERS = {
    "chat_id": "chat_id = %(chat_id)s",
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
    """A page of messages: their JSON, separated; the last one's id; whether more follow; their places if too large."""

    text: str
    last_id: str | None
    has_more: bool
    seqs: str | None


class Selection(NamedTuple):
    """Which messages are meant: a name of FILTERS each, the values that they compare with, and the order."""

    filters: tuple[str, ...]
    values: Mapping[str, Any]
    descending: bool

    def statement(self, name: str) -> str:
        """Give the query `name` for these filters in this order."""
        return _compose(name, self.filters, self.descending)


@functools.cache  # as many as there are sets of filters: a few hundred
def _compose(name: str, filters: tuple[str, ...], descending: bool) -> str:
    conditions = [sql.SQL(FILTERS[filter_name]) for filter_name in filters] or [sql.SQL("TRUE")]
    composed = sql.SQL(queries.get(name)).format(
        filters=sql.SQL("\n            AND ").join(conditions), order=sql.SQL("DESC" if descending else "ASC")
    )
    return composed.as_string()


def insert_message(database: Database, message: Mapping[str, Any]) -> str | None:
    """Store a message and give it as JSON; None where its message_id is taken."""
    rows = database.run(queries.get("insert_message"), message)
    return cast(str, rows[0][0]) if rows else None


def select_stored_message(database: Database, message: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Give the stored message with this message_id as JSON, and whether it is the same; None where there is none."""
    rows = database.run(queries.get("select_stored_message"), message)
    return (cast(str, rows[0][0]), rows[0][1] == "t") if rows else None


def select_message(database: Database, message_id: str) -> str | None:
    """Give a message as JSON, or None."""
    rows = database.run(queries.get("select_message"), {"message_id": message_id})
    return cast(str, rows[0][0]) if rows else None


def update_message(database: Database, message_id: str, changes: Mapping[str, Any]) -> str | None:
    """Change content, rating or both, and give the message as JSON.

    None where there is none, or where another field of `changes` is not as stored.
    """
    rows = database.run(queries.get("update_message"), _fields(message_id, changes))
    return cast(str, rows[0][0]) if rows else None


def select_differences(database: Database, message_id: str, changes: Mapping[str, Any]) -> list[str] | None:
    """Give the names of the fields of `changes` that never change and differ; None where there is no such message."""
    rows = database.run(queries.get("select_differences"), _fields(message_id, changes))
    return (
        [name for name, differs in zip(("chat_id", "role", "sent_at"), rows[0], strict=True) if differs == "t"]
        if rows
        else None
    )


def _fields(message_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = ("chat_id", "content", "rating", "sent_at", "role")
    return {name: changes.get(name) for name in names} | {"message_id": message_id, "rates": "rating" in changes}


def delete_message(database: Database, message_id: str) -> bool:
    """Delete a message, and tell whether it was there."""
    return bool(database.run(queries.get("delete_message"), {"message_id": message_id}, repeatable=False))


def delete_chat(database: Database, chat_id: str) -> int:
    """Delete a chat's messages, and give how many there were."""
    return int(database.run(queries.get("delete_chat"), {"chat_id": chat_id}, repeatable=False)[0][0] or 0)


def select_message_seq(database: Database, message_id: str) -> int | None:
    """Give the message's place in the order in which they were stored, or None."""
    rows = database.run(queries.get("select_message_seq"), {"message_id": message_id})
    return int(cast(str, rows[0][0])) if rows else None


def select_messages(database: Database, selection: Selection, limit: int, separator: str) -> Page:
    """Give the first `limit` messages of the selection, or where they are if they are too large for one text."""
    params = {**selection.values, "limit": limit, "separator": separator, "max_bytes": MAX_PAGE_BYTES}
    text, last_id, has_more, seqs = database.run(selection.statement("select_messages"), params)[0]
    return Page(text or "", last_id, has_more == "t", seqs)


def copy_messages(database: Database, selection: Selection) -> Generator[list[bytes], None, None]:
    """Stream the messages of the selection in batches of JSON rows, each with its line break."""
    return database.stream(selection.statement("copy_messages"), selection.values)


def select_chat_seq(database: Database, chat_id: str) -> int | None:
    """Give the chat's place in the order of chats, or None."""
    rows = database.run(queries.get("select_chat_seq"), {"chat_id": chat_id})
    return int(cast(str, rows[0][0])) if rows else None


def select_chats(database: Database, before: int, limit: int) -> tuple[str, str | None]:
    """Give up to `limit` chats placed before that place, as a JSON array, and the last one's id if more follow."""
    rows = database.run(queries.get("select_chats"), {"before": before, "limit": limit})
    page = rows[:limit]
    return "[" + ",".join(chat or "" for chat, _ in page) + "]", page[-1][1] if len(rows) > limit else None
