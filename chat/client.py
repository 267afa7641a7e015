"""The persistence service, over HTTP."""

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from chat.errors import PersistenceError

TIMEOUT = (2.0, 12.0)  # seconds to connect, and for an answer: the service gives one within 10
READY_TIMEOUT = (0.5, 1.2)
CONNECTIONS = 128  # kept alive, of a worker


class Retries(Retry):
    """urllib3's retries, but for an answer that does not come in time: who waited so long gets no more patience."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        """Return the retries that are left. Raises the error if there are none."""
        if isinstance(error := kwargs.get("error"), ReadTimeoutError):
            raise error
        return super().increment(*args, **kwargs)


RETRIES = Retries(
    total=6,
    read=2,
    backoff_factor=0.1,
    backoff_max=1.5,
    status_forcelist=(500, 502, 503, 504),
    allowed_methods=None,  # all: each can be repeated safely
    retry_after_max=2,
    raise_on_status=False,
)
JSON, NDJSON = "application/json", "application/x-ndjson"


class Caller(NamedTuple):
    """For whom a call is made; both are sent on to the persistence service."""

    api_key: str
    request_id: str

    def __repr__(self) -> str:
        return f"Caller(request_id={self.request_id!r})"


class PersistenceClient:
    """One session, whose connections are kept alive, for any number of greenlets."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._name = urlsplit(base_url).netloc.rpartition("@")[2]  # without a password
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc has a part in what is said to our own service
        # under load a turn waits for a connection: new ones for each call would cost more time than there is
        self._session.mount(base_url, HTTPAdapter(1, CONNECTIONS, max_retries=RETRIES, pool_block=True))
        # but a list holds its connection while it is read, so it never waits for one
        self._session.mount(f"{base_url}/messages/?", HTTPAdapter(1, CONNECTIONS, max_retries=RETRIES))
        self._session.mount(f"{base_url}/ready", HTTPAdapter(1, 1))

    def store_message(self, caller: Caller, message: Mapping[str, Any]) -> tuple[str, bool]:
        """Store a message, which is safe to repeat, and return it as JSON, and whether it is new.

        Raises PersistenceError, 409 if another message has the id.
        """
        response = self._request(caller, "POST", "/messages/", body=message)
        return response.text.strip(), response.status_code == 201

    def read_message(self, caller: Caller, message_id: str) -> str | None:
        """Return a message as JSON, or None. Raises PersistenceError."""
        try:
            return self._request(caller, "GET", f"/messages/{message_id}").text.strip()
        except PersistenceError as exc:
            if exc.status == 404:
                return None
            raise

    def list_messages(self, caller: Caller, query: Mapping[str, str], media: str = JSON) -> requests.Response:
        """Return a list of messages whose body is still to be read, and then closed. Raises PersistenceError."""
        return self._request(caller, "GET", "/messages/", query=query, media=media, stream=True)

    def take_turns(self, caller: Caller, worker_id: str, message_ids: Iterable[str]) -> list[str]:
        """Mark the turns of these messages as at work here, and return those that are. Raises PersistenceError."""
        body = {"worker_id": worker_id, "message_ids": list(message_ids)}
        response = self._request(caller, "PUT", "/turns/", body=body)
        with contextlib.suppress(ValueError, LookupError, TypeError):
            return list(response.json()["message_ids"])
        raise _refusal(response)

    def give_back_turn(self, caller: Caller, worker_id: str, message_id: str) -> None:
        """Take this worker's mark off a turn. Raises PersistenceError."""
        self._request(caller, "DELETE", f"/turns/{message_id}", query={"worker_id": worker_id})

    def problem(self) -> str | None:
        """Return within two seconds why the service can't do its work, or None."""
        try:
            status = self._session.get(f"{self._base_url}/ready", timeout=READY_TIMEOUT).status_code
        except requests.RequestException as exc:
            return f"{self._name}: {type(exc).__name__}"
        return None if status == 200 else f"{self._name} answers {status}"

    def _request(
        self,
        caller: Caller,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        media: str = JSON,
        stream: bool = False,
    ) -> requests.Response:
        headers = {"x-api-key": caller.api_key.encode("latin-1"), "X-Request-ID": caller.request_id}
        headers |= {"Accept": media, "Content-Type": JSON}
        # bytes, since requests would escape all that is not ASCII, which can double it
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        # prepared without what a session would add to it: the session has nothing to add, and looks for it at length
        request = requests.Request(method, self._base_url + path, headers, data=data, params=query).prepare()
        send = functools.partial(self._session.send, request, stream=stream, allow_redirects=False, timeout=TIMEOUT)
        try:
            try:
                response = send()
            except requests.exceptions.ChunkedEncodingError:  # its body broke off; urllib3's retries end with the head
                response = send()
        except requests.RequestException as exc:
            raise _away() from exc
        response.encoding = "utf-8"
        kind = response.headers.get("Content-Type")
        if response.status_code == 204 or (response.status_code in (200, 201) and kind == media):
            return response
        raise _refusal(response)


def pieces(response: requests.Response) -> Iterator[bytes]:
    """Return the body as it comes. Raises PersistenceError if it breaks off."""
    try:
        yield from response.iter_content(64 * 1024)
    except requests.RequestException as exc:
        raise _away() from exc


def rows(response: requests.Response) -> Iterator[Any]:
    """Return the value of each line of a body of NDJSON. Raises PersistenceError if it breaks off."""
    try:
        yield from map(json.loads, response.iter_lines(64 * 1024))
    except requests.RequestException as exc:
        raise _away() from exc


def _away() -> PersistenceError:
    return PersistenceError(503, "The persistence service is away; try again soon.")


def _refusal(response: requests.Response) -> PersistenceError:
    with response, contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
        if response.status_code >= 400:
            error = response.json()
            message = str(error["message"])
            if response.status_code >= 500:
                return PersistenceError(503, f"The persistence service fails; try again soon. It says: {message}")
            return PersistenceError(response.status_code, message, errors=error.get("errors"))
    if response.status_code in (502, 503, 504):  # a balancer's own, which has no instance to pass the request to
        return _away()
    return PersistenceError(502, f"API_BASE_URL: what is there answered {response.status_code}, and not as it should.")
