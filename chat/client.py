"""The persistence service, over HTTP."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import requests
from requests.adapters import HTTPAdapter

CONNECT_SECONDS = 2.0
KEPT_CONNECTIONS = 100
RETRY_STATUSES = (500, 502, 503, 504)
JSON, NDJSON = "application/json", "application/x-ndjson"


class Patience(NamedTuple):
    """For how many seconds new tries begin, and for how many each of them waits for an answer."""

    tries: float
    answer: float


USUAL = Patience(tries=3.0, answer=12.0)  # the service answers within 10
FOR_REPLIES = Patience(tries=10.0, answer=5.0)  # a reply that cost money gets a second try where the first hangs


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
    """Connections that are kept alive, for any number of threads.

    They are used without a session of `requests`, which is about a third of what a call costs: it is there for cookies,
    redirects, proxies and .netrc, and none of these has a part in what is said to our own service.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._connections = HTTPAdapter(pool_connections=1, pool_maxsize=KEPT_CONNECTIONS)

    def store_message(self, caller: Caller, message: Mapping[str, str], patience: Patience = USUAL) -> tuple[str, bool]:
        """Store a message, which is safe to repeat, and give it as JSON, and whether it is new.

        Raises PersistenceError, 409 where another message has the id.
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

    def list_messages(self, caller: Caller, query: Mapping[str, str], media: str = JSON) -> requests.Response:
        """Give a list of messages whose body is still to be read, and then closed. Raises PersistenceError."""
        return self._request(caller, "GET", "/messages/", query=query, media=media, stream=True)

    def is_ready(self) -> bool:
        """Tell whether the service says that it can do its work."""
        try:
            request = requests.Request("GET", f"{self._base_url}/ready")
            return self._send(request, timeout=(0.5, 1.2)).status_code == 200
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
        media: str = JSON,
        patience: Patience = USUAL,
        stream: bool = False,
    ) -> requests.Response:
        headers: dict[str, str | bytes | None] = {
            "x-api-key": caller.api_key.encode("latin-1"),
            "X-Request-ID": caller.request_id,
            "Accept": media,
        }
        if body is not None:
            headers["Content-Type"] = JSON
        request = requests.Request(method, self._base_url + path, headers, params=query, data=body)
        problem = ""
        for pause in _pauses(patience.tries):
            if pause:
                time.sleep(pause)
            try:
                response = self._send(request, (CONNECT_SECONDS, patience.answer), stream)
            except requests.RequestException as exc:
                problem = str(exc)
            else:
                response.encoding = "utf-8"
                if response.status_code in (200, 201) and response.headers.get("Content-Type") == media:
                    return response
                if response.status_code not in RETRY_STATUSES:
                    raise _refusal(response)
                response.close()
                problem = f"it answered {response.status_code}"
        raise _away(problem)

    def _send(self, request: requests.Request, timeout: tuple[float, float], stream: bool = False) -> requests.Response:
        """Give the response, and but for a stream all of its body. Raises requests.RequestException."""
        response = self._connections.send(request.prepare(), stream, timeout)
        if not stream:
            response.content  # noqa: B018  # reads it
        return response


def pieces(response: requests.Response) -> Iterator[bytes]:
    """Give the body as it comes. Raises PersistenceError where it breaks off."""
    try:
        yield from response.iter_content(64 * 1024)
    except requests.RequestException as exc:
        raise _away(str(exc)) from exc


def rows(response: requests.Response) -> Iterator[Any]:
    """Give what each line of a body of NDJSON says. Raises PersistenceError where it breaks off."""
    try:
        yield from map(json.loads, response.iter_lines(64 * 1024))
    except requests.RequestException as exc:
        raise _away(str(exc)) from exc


def _pauses(seconds: float) -> Iterator[float]:
    """Give the pause before each try, which grow, until so many seconds are over."""
    began = time.monotonic()
    yield 0.0
    pause = 0.0  # the first try may only have met a connection that had died
    while time.monotonic() - began < seconds:
        yield pause
        pause = min(2 * pause + 0.1, 1.5)


def _away(problem: str) -> PersistenceError:
    error = PersistenceError(503, "The persistence service is away; try again soon.")
    error.__cause__ = ConnectionError(problem)
    return error


def _refusal(response: requests.Response) -> PersistenceError:
    with response, contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
        if response.status_code >= 400:
            error = response.json()
            return PersistenceError(response.status_code, str(error["message"]), error.get("errors"))
    return PersistenceError(502, f"API_BASE_URL: what is there answered {response.status_code}, and not as it should.")
