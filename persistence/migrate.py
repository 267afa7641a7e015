"""Brings the database's schema up to date."""

import logging
from typing import Any

from psycopg import Connection

from persistence import deadline, queries

SCHEMA_SECONDS = 600.0  # for what a new file has to do

log = logging.getLogger(__name__)


def apply_schema(connection: Connection[Any]) -> None:
    """Apply the files of sql/schema that have not been applied, in order, in one transaction, one service at a time.

    Raises psycopg.Error; a lock that another service holds is a LockNotAvailable after 3 s.
    """
    with connection.transaction():
        connection.execute(queries.get("limit_schema"))
        connection.execute(queries.get("lock_schema"))
        if connection.execute(queries.get("select_schema_table")).fetchone() == (None,):
            connection.execute(queries.get("create_schema_files"))
        applied = {name for (name,) in connection.execute(queries.get("select_schema_files"))}
        for path in queries.schema_files():
            if path.name not in applied:
                deadline.begin(SCHEMA_SECONDS)
                connection.execute(path.read_text(encoding="utf-8"), prepare=False)
                connection.execute(queries.get("insert_schema_file"), {"name": path.name})
                log.info("Applied %s", path.name)
