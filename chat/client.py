"""The persistence service, over HTTP."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter

CONNECT_SECONDS = 2.0
READ_SECONDS = 12.0  # it answers within 10
RETRY_SECONDS = 3.0
KEPT_CONNECTIONS = 100
RETRY_STATUSES = (500, 502, 503, 504)


class PersistenceError(Exception):
    """The persistence service said no: `status`, `message`, and `errors` by field, as it gave them."""

    def __init__(self, status: int, message: str, errors: Any = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.errors = status, message, errors


class Caller(NamedTuple):
    """For whom a call is made; both go on to the persistence service."""

    api_key: str
    request_id: str

    def __repr__(self) -> str:
        return f"Caller(request_id={self.request_id!r})"


class PersistenceClient:
    """One session, whose connections are kept alive, for any number of threads."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no .netrc: it is our own service
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=KEPT_CONNECTIONS))

    def store_message(
        self, caller: Caller, message: Mapping[str, str], patience: float = RETRY_SECONDS
    ) -> tuple[str, bool]:
        """Store a message, which is safe to repeat, and give it as JSON, and whether it is new.

        `patience`: seconds for which to go on trying. Raises PersistenceError, 409 where another message has the id.
        """
        # bytes, since requests would escape all that is not ASCII, which can double it
        body = json.dumps(message, ensure_ascii=False).encode()
        response = self._request(caller, "POST", "/messages/", body=body, patience=patience)
        return response.text.strip(), response.status_code == 201

    def read_message(self, caller: Caller, message_id: str) -> str | None:
        """Give a message as JSON; None where there is none. Raises PersistenceError."""
        try:
            return self._request(caller, "GET", f"/messages/{message_id}").text.strip()
        except PersistenceError as exc:
            if exc.status == 404:
                return None
            raise

    def list_messages(self, caller: Caller, query: Mapping[str, str]) -> requests.Response:
        """Give a page of messages, or all of them as a stream where `query` has no limit. Raises PersistenceError."""
        return self._request(caller, "GET", "/messages/", query=query, stream="limit" not in query)

    def is_ready(self) -> bool:
        """Tell whether the service says that it can do its work, within 2 s."""
        try:
            return self._session.get(f"{self._base_url}/ready", timeout=(0.5, 1.2)).status_code == 200
        except requests.RequestException:
            return False

    def _request(
        self,
        caller: Caller,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience: float = RETRY_SECONDS,
        stream: bool = False,
    ) -> requests.Response:
        headers: dict[str, str | bytes | None] = {
            "x-api-key": caller.api_key.encode("latin-1"),
            "X-Request-ID": caller.request_id,
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        problem = ""
        for pause in _pauses(patience):
            time.sleep(pause)
            try:
                response = self._session.request(
                    method,
                    self._base_url + path,
                    params=query,
                    data=body,
                    headers=headers,
                    timeout=(CONNECT_SECONDS, READ_SECONDS),
                    stream=stream,
                    allow_redirects=False,
                )
            except requests.RequestException as exc:
                problem = str(exc)
            else:
                response.encoding = "utf-8"
                if response.ok:
                    return response
                if response.status_code not in RETRY_STATUSES:
                    raise _refusal(response)
                problem = f"it answered {response.status_code}"
        raise PersistenceError(503, "The persistence service is away; try again soon.") from ConnectionError(problem)


def _pauses(seconds: float) -> Iterator[float]:
    """Give the pause before each try, which grow, until so many seconds are over."""
    began = time.monotonic()
    yield 0.0
    pause = 0.0  # the first try may only have met a connection that had died
    while time.monotonic() - began < seconds:
        yield pause
        pause = min(2 * pause + 0.1, 1.5)


def _refusal(response: requests.Response) -> PersistenceError:
    try:
        error = response.json()
        return PersistenceError(response.status_code, str(error["message"]), error.get("errors"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return PersistenceError(
            502, f"API_BASE_URL: what is there answered {response.status_code}, and not as it should."
        )
