"""Lists as responses: a page with a Link to the next, or all of it, streamed with flat memory."""

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from urllib.parse import urlencode

from flask import Response, current_app, request
from webargs.flaskparser import abort
from werkzeug.datastructures import MIMEAccept

JSON, NDJSON = "application/json", "application/x-ndjson"
SEPARATORS = {JSON: ",\n", NDJSON: "\n"}


def media_type() -> str:
    """Return JSON or NDJSON, whichever the caller likes better; JSON if neither."""
    # without parameters such as charset, which werkzeug would compare too
    accepted = [(value.partition(";")[0], quality) for value, quality in request.accept_mimetypes]
    return MIMEAccept(accepted).best_match((JSON, NDJSON), JSON)


def page(text: str | None, media: str) -> Response:
    """Return a page whose rows are in `text`, separated as SEPARATORS says."""
    body = f"[{text or ''}]\n" if media == JSON else text and f"{text}\n"
    return Response(body, mimetype=media, headers={"Vary": "Accept"})


def link_next(query: Mapping[str, str]) -> str:
    """Return the Link header (RFC 8288) to the next page: this path with `query`, relative to any address."""
    return f'<{request.path}?{urlencode(query)}>; rel="next"'


def stream(batches: Generator[list[bytes], None, None], media: str) -> Response:
    """Return the rows of `batches`, which end with a line break each, as a response that is made while it is sent.

    What fails before the first batch is raised here, while there can still be an error; what fails later cuts the
    connection. Aborts with 503 if too many exports run: each holds a connection, and some are kept for others.
    """
    free: threading.BoundedSemaphore = current_app.extensions["exports"]
    if not free.acquire(blocking=False):
        abort(503, message="Too many exports are running; try again soon.", headers={"Retry-After": "5"})
    with ExitStack() as at_end:
        at_end.callback(free.release)
        at_end.callback(batches.close)
        response = Response(_body(next(batches), batches, media), mimetype=media, headers={"Vary": "Accept"})
        response.call_on_close(at_end.pop_all().close)
    return response


def _body(first: list[bytes], rest: Generator[list[bytes], None, None], media: str) -> Iterator[bytes]:
    begin, separator, end = (b"[", b",", b"]\n") if media == JSON else (b"", b"", b"")
    yield begin + separator.join(first)
    for batch in rest:
        if batch:
            yield separator + separator.join(batch)
    yield end


def no_content() -> Response:
    """Return the response that says only that it is done."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response
