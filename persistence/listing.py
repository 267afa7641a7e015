"""Lists as responses: a page with a Link to the next, or all of it, streamed with flat memory."""

import re
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus

from flask import Response, request
from webargs.flaskparser import abort

from persistence.web.response import JsonResponse

JSON, NDJSON = "application/json", "application/x-ndjson"
SEPARATORS = {JSON: ",\n", NDJSON: "\n"}
_needs_no_quotes = re.compile(r"[\w.-]*", re.ASCII)


def media_type() -> str:
    """Give what the caller likes better: application/json, unless application/x-ndjson is asked for."""
    if request.environ.get("HTTP_ACCEPT", "*/*") in ("*/*", JSON):  # as nearly everyone's, which needs no parsing
        return JSON
    return request.accept_mimetypes.best_match([JSON, NDJSON]) or JSON


def page(text: str, media: str) -> Response:
    """Answer with a page whose rows are in `text`, separated as SEPARATORS says."""
    body = f"[{text}]\n" if media == JSON else text and f"{text}\n"
    return JsonResponse(body, mimetype=media, headers={"Vary": "Accept"})


def link_next(query: Mapping[str, str]) -> str:
    """Give the Link header (RFC 8288) to the next page: this path with `query`, relative to any address."""
    parameters = [  # urlencode, which quotes all of them, took 4 % of the instructions of a page
        f"{name}={value if _needs_no_quotes.fullmatch(value) else quote_plus(value)}" for name, value in query.items()
    ]
    return f'<{request.path}?{"&".join(parameters)}>; rel="next"'


def document_link(example: str) -> dict[str, Any]:
    """Give what the OpenAPI document says of the Link header, with the address `example`."""
    return {
        "Link": {
            "description": "While there is more: the next page's address, relative to this one (RFC 8288).",
            "schema": {"type": "string", "example": f'<{example}>; rel="next"'},
        }
    }


def no_content() -> Response:
    """Answer that it is done."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


class Exports:
    """The places for exports: each holds a thread and a connection until its reader has all, so some are kept free."""

    def __init__(self, places: int) -> None:
        self._free = threading.BoundedSemaphore(places)

    def stream(self, batches: Generator[list[bytes], None, None], media: str) -> Response:
        """Answer with the rows of `batches`, which end with a line break each.

        Aborts with 503 where no place is free. What fails before the first batch is raised here, while there can still
        be an error; what fails later cuts the connection.
        """
        if not self._free.acquire(blocking=False):
            abort(503, message="Too many exports are running; try again soon.", headers={"Retry-After": "5"})
        try:
            first = next(batches, [])
        except BaseException:  # whatever it is, the place must not be lost
            self._free.release()
            raise
        return Response(Export(first, batches, media, self._free), mimetype=media, headers={"Vary": "Accept"})


class Export:
    """The body of an export. It gives back its place when it is closed, started or not."""

    def __init__(
        self, first: list[bytes], rest: Generator[list[bytes], None, None], media: str, place: threading.Semaphore
    ) -> None:
        self._first, self._rest, self._place = first, rest, place
        self._begin, self._separator, self._end = (b"[", b",", b"]\n") if media == JSON else (b"", b"", b"")
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        """Give the body in pieces of a batch each."""
        yield self._begin + self._separator.join(self._first)
        for batch in self._rest:
            if batch:
                yield self._separator + self._separator.join(batch)
        yield self._end

    def close(self) -> None:
        """Let go of the connection and the place."""
        if not self._closed:
            self._closed = True
            self._rest.close()
            self._place.release()
