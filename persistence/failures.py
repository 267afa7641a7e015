"""What an error of PostgreSQL means, and how the log tells it."""

import psycopg


def passes_by_itself(exc: psycopg.Error) -> bool:
    """Return whether the same statement may succeed later (PostgreSQL's documentation, appendix A, has the classes)."""
    state = exc.sqlstate or ""
    return isinstance(exc, psycopg.OperationalError) or state.startswith(("08", "25006", "40", "53", "55P03", "57"))


def describe(exc: psycopg.Error) -> str:
    """Return the error on one line, without the details, which may repeat a message's content."""
    text = exc.diag.message_primary or str(exc).partition("\n")[0]
    return " ".join(filter(None, (type(exc).__name__, exc.sqlstate, text)))
