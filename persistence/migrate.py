"""Brings the database's schema up to date."""

import logging
from typing import Any

from psycopg import Connection

from persistence import queries

log = logging.getLogger(__name__)


def apply_schema(connection: Connection[Any]) -> None:
    """Apply the files of sql/schema that have not been applied, in order, in one transaction.

    Other services that start at the same time wait for an advisory lock, and then find it done. Raises psycopg.Error.
    """
    with connection.transaction():
        connection.execute(queries.get("lock_schema"))
        connection.execute(queries.get("create_schema_files"))
        applied = {name for (name,) in connection.execute(queries.get("select_schema_files"))}
        for path in queries.schema_files():
            if path.name not in applied:
                connection.execute(path.read_text(encoding="utf-8"), prepare=False)
                connection.execute(queries.get("insert_schema_file"), {"name": path.name})
                log.info("Applied %s", path.name)
