"""The SQL of the sql folder."""

import functools
from pathlib import Path

SQL = Path(__file__).resolve().parent.parent / "sql"


@functools.cache
def get(name: str) -> str:
    """Return the text of sql/queries/`name`.sql."""
    return (SQL / "queries" / f"{name}.sql").read_text(encoding="utf-8")


def schema_files() -> list[Path]:
    """Return the files of sql/schema in the order in which they are applied."""
    return sorted((SQL / "schema").glob("*.sql"))
