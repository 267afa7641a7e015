"""What can go wrong in a turn, each as its caller is told."""

from typing import Any


class TurnError(Exception):
    """A turn that failed: the HTTP `status`, a sentence for the caller, `errors` by field, seconds to `retry_after`."""

    def __init__(self, status: int, message: str, *, errors: Any = None, retry_after: str = "2") -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.errors, self.retry_after = status, message, errors, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that the status asks for."""
        return {401: {"WWW-Authenticate": "ApiKey"}, 503: {"Retry-After": self.retry_after}}.get(self.status, {})


class ModelError(TurnError):
    """The model gave no reply."""


class PersistenceError(TurnError):
    """The persistence service refused or failed."""
