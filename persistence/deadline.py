"""How long the present work on the database may take: set where it begins, obeyed where it could hang."""

import time
from contextvars import ContextVar

REQUEST_SECONDS = 9.5  # the contract: a silent database is a 503 within 10 s

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(seconds: float = REQUEST_SECONDS) -> None:
    """Set the deadline of what this greenlet does on the database to `seconds` from now."""
    _deadline.set(time.monotonic() + seconds)


def forget() -> None:
    """Forget the deadline of the request before, which this greenlet may have served."""
    _deadline.set(None)


def begin_if_none() -> None:
    """Set the deadline if there is none: a request's begins when it first needs the database, not while it is read."""
    if _deadline.get() is None:
        begin()


def remaining() -> float:
    """Return the seconds that are left, at least 0; REQUEST_SECONDS if nothing was begun."""
    deadline = _deadline.get()
    return REQUEST_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
