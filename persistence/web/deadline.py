"""How long the present work may still take: set where it begins, obeyed where something could hang."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_SECONDS = 9.5  # the contract: a silent database is a 503 within 10 s, time spent in the queue included

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(seconds: float, since: float | None = None) -> None:
    """Give this thread's work so many `seconds`, counted from `since` (of time.monotonic) or from now."""
    _deadline.set((time.monotonic() if since is None else since) + seconds)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let what is done inside take so many `seconds`, and no longer than the work around it may."""
    before = _deadline.set(time.monotonic() + min(seconds, remaining()))
    try:
        yield
    finally:
        _deadline.reset(before)


def remaining() -> float:
    """Give the seconds that are left, 0 at least; REQUEST_SECONDS where nothing was begun."""
    deadline = _deadline.get()
    return REQUEST_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
