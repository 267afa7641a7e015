"""The model, behind one small interface; the provider's errors become ours here."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import gevent
import httpx2
import openai

from chat.chunks import MAX_REPLY_BYTES, TOO_LONG, check_end, chunks, codes, read, storable
from chat.errors import ModelError
from chat.settings import Settings

CONNECT_SECONDS = 10.0
END_SECONDS = 0.5  # for the body's end after [DONE], which frees the connection for the next turn
RETRY_PAUSES = (0.5, 1.0)  # seconds, where the provider has done nothing yet
REJECTED = "The model's provider rejects the service's key; see OPENAI_API_KEY."
UNREACHABLE = "The model's provider can't be reached, or broke off; try again, or see OPENAI_BASE_URL."
FAILED = "The model's provider failed ({status}); try again."
REFUSED = "The model's provider refuses the request ({status}); see OPENAI_MODEL, OPENAI_OPTIONS and the log."
REFUSALS = {  # what the provider's status means for our caller
    401: REJECTED,
    403: REJECTED,
    404: "The provider knows no model {model!r}; see OPENAI_MODEL, and OPENAI_BASE_URL.",
    408: FAILED,
    409: FAILED,
    429: "The model's provider is over its rate limit or quota; try again later.",
}

T = TypeVar("T")

log = logging.getLogger(__name__)


class Model:
    """The model that the settings name: one client, whose connections are kept alive, for any number of greenlets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = openai.OpenAI(
            api_key=settings.openai_api_key or "none",  # a local model needs none, the package does
            base_url=settings.openai_base_url,
            max_retries=0,  # it would retry time-outs too, each of which may be paid for
            http_client=httpx2.Client(
                timeout=httpx2.Timeout(settings.openai_timeout, connect=CONNECT_SECONDS, pool=None),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
                follow_redirects=False,
            ),
        )

    def ask(self, messages: list[dict[str, str]], on_piece: Callable[[str], None], report: dict[str, Any]) -> str:
        """Ask the model, and return its whole reply.

        `on_piece` is called with each piece as it comes, and with "" when the provider begins. `report` is filled with
        `finish_reason`, and with `prompt_tokens` and `completion_tokens` if the provider tells them. Raises ModelError.
        """
        report["finish_reason"] = None
        pieces: list[str] = []
        size = 0
        try:
            with _our_errors(self._settings), self._send(messages) as response:
                body = response.iter_bytes()
                following = chunks(body)
                while (chunk := self._in_time(next, following, None)) is not None:
                    piece = read(chunk, report)
                    pieces.append(piece)
                    piece = storable(piece)
                    size += len(json.dumps(piece, ensure_ascii=False).encode()) - 2
                    if size > MAX_REPLY_BYTES:
                        report["finish_reason"] = None
                        raise ModelError(502, TOO_LONG)
                    if piece or len(pieces) == 1:
                        on_piece(piece)
                if not pieces:
                    raise ModelError(502, "The model's provider sent no reply; try again, or see OPENAI_BASE_URL.")
                with gevent.Timeout(END_SECONDS, False):
                    for _ in body:
                        pass
        except ModelError:
            if report["finish_reason"] is None:  # else the reply is whole, whatever comes after it
                raise
        text = storable("".join(pieces))
        check_end(text, report["finish_reason"])
        return text

    def _in_time(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what `call` returns. Raises gevent.Timeout after OPENAI_TIMEOUT."""
        with gevent.Timeout(self._settings.openai_timeout):
            return call(*args, **kwargs)

    @contextlib.contextmanager
    def _send(self, messages: list[dict[str, str]]) -> Iterator[Any]:
        """Send the request, and return the response when its head is there."""
        body = {"model": self._settings.openai_model, "messages": messages, "stream": True}
        body |= self._settings.openai_options
        # what the package's create() calls, without its check of types, which costs a fifth of a turn
        send = partial(self._client.post, "/chat/completions", body=body, cast_to=httpx2.Response, stream=True)
        for pause in (*RETRY_PAUSES, None):
            try:
                response = self._in_time(send)
                break
            except (openai.APIConnectionError, openai.APIStatusError) as exc:
                if pause is None or not _has_done_nothing(exc):
                    raise
                log.info("The provider is asked again: %s", exc.__cause__ or type(exc).__name__)
            time.sleep(pause)
        with contextlib.closing(response):
            yield response


def _has_done_nothing(exc: openai.APIConnectionError | openai.APIStatusError) -> bool:
    """Return whether asking again costs nothing: a time-out may have been at work, and is paid for."""
    if isinstance(exc, openai.APIStatusError):
        return exc.status_code in (408, 409) or exc.status_code >= 500
    return isinstance(exc.__cause__, httpx2.ConnectError)


@contextlib.contextmanager
def _our_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (gevent.Timeout, openai.APITimeoutError, httpx2.TimeoutException) as exc:
        if isinstance(exc.__cause__, httpx2.ConnectTimeout):
            raise ModelError(502, UNREACHABLE) from exc
        message = "The model's provider did not answer in time; try again, or see OPENAI_TIMEOUT."
        raise ModelError(504, message) from exc
    except openai.APIStatusError as exc:
        log.warning("The provider answered %d (%s)", exc.status_code, codes(exc.body))
        raise _refusal(exc, settings) from None  # its text may repeat the key or the conversation: nothing for a log
    except (openai.APIConnectionError, httpx2.RequestError) as exc:
        raise ModelError(502, UNREACHABLE) from exc
    except (openai.OpenAIError, httpx2.HTTPError) as exc:
        raise ModelError(502, "The model's provider can't be used; see the log.") from exc


def _refusal(exc: openai.APIStatusError, settings: Settings) -> ModelError:
    status = exc.status_code
    message = REFUSALS.get(status, FAILED if status >= 500 else REFUSED)
    message = message.format(status=status, model=settings.openai_model)
    if status != 429:
        return ModelError(502, message)
    retry_after = exc.response.headers.get("retry-after", "")
    is_usable = retry_after.isascii() and retry_after.isprintable() and retry_after
    return ModelError(503, message, retry_after=retry_after if is_usable else "5")
