"""What an error of PostgreSQL means, and how the log tells it."""

import psycopg
from psycopg.errors import ReadOnlySqlTransaction

# what passes by itself, so that the same statement may succeed later: psycopg's class for 08, 40, 53, 55P03 and 57 of
# SQLSTATE (PostgreSQL's documentation, appendix A), libpq's own errors and the pool's; and 25006, of a former primary
PASSING = (psycopg.OperationalError, ReadOnlySqlTransaction)


def describe(exc: psycopg.Error) -> str:
    """Return the error on one line, without the details, which may repeat a message's content."""
    text = exc.diag.message_primary or str(exc).partition("\n")[0]
    return " ".join(filter(None, (type(exc).__name__, exc.sqlstate, text)))
