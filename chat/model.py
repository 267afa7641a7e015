"""The model, behind one small interface; the provider's errors become ours here."""

import contextlib
import itertools
import json
import logging
import re
import ssl
from collections import deque
from collections.abc import Iterator
from typing import Any

import httpx2
import openai

from chat.settings import Settings

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1024 * 1024 - 512  # as JSON in UTF-8: a message of 1 MiB, less its other fields
MAX_LINE_BYTES = 2 * MAX_REPLY_BYTES
IDLE_CLIENTS = 256
FINISHED = ("stop", "length")


class ModelError(Exception):
    """The model gave no reply: the `status` and the sentence for the caller, and `retry_after` seconds if it passes."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Reply:
    """One reply, piece by piece, from a stream that the provider has begun to send."""

    def __init__(self, chunks: Iterator[list[dict[str, Any]]]) -> None:
        self._chunks = chunks
        self._finish_reason: str | None = None
        self._size = 0
        self._held = ""
        self.text = ""
        try:
            self._first = self._begin()
        except ModelError:
            self.close()
            raise

    def pieces(self) -> Iterator[list[str]]:
        """Give the pieces as they come, those together that came together; afterwards, `text` has all of it.

        Raises ModelError where the stream breaks, or where the reply is unfinished, filtered, empty or too long.
        """
        pieces: list[str] = []
        try:
            for chunks in itertools.chain([self._first], self._chunks):
                together, failure = self._read(chunks)
                if together:
                    pieces += together
                    yield together
                if failure is not None:
                    raise failure
        except ModelError:
            if self._finish_reason is None:
                raise
        if self._held:  # half an emoji, whose other half never came
            pieces.append("\ufffd")
            yield ["\ufffd"]
        self.text = "".join(pieces)
        self._check()

    def _read(self, chunks: list[dict[str, Any]]) -> tuple[list[str], ModelError | None]:
        """Give the pieces in `chunks`, up to what is wrong with one of them."""
        pieces = []
        try:
            for chunk in chunks:
                piece, self._held = _whole_characters(self._held + self._content(chunk))
                if piece:
                    self._measure(piece)
                    pieces.append(piece)
        except ModelError as exc:
            return pieces, exc
        return pieces, None

    def close(self) -> None:
        """Let go of the stream."""
        self._chunks.close()  # type: ignore[attr-defined]  # a generator

    def _begin(self) -> list[dict[str, Any]]:
        first = next(self._chunks, None)
        if first is None:
            raise ModelError(502, "The model's provider sent an empty reply; try again, or see OPENAI_BASE_URL.")
        self._content(first[0])  # may be an error
        return first

    def _content(self, chunk: dict[str, Any]) -> str:
        if error := chunk.get("error"):
            log.warning("The provider ended the stream with an error (%s)", _codes(error))
            raise ModelError(502, "The model's provider broke off its reply; send the request again.")
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            return ""
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        return content if isinstance(content, str) else ""

    def _measure(self, piece: str) -> None:
        self._size += len(json.dumps(piece, ensure_ascii=False).encode()) - 2
        if self._size > MAX_REPLY_BYTES:
            self._finish_reason = None
            raise ModelError(502, "The model's reply is longer than a message may be (1 MiB); ask for a shorter one.")

    def _check(self) -> None:
        if self._finish_reason == "content_filter":
            raise ModelError(502, "The model's provider filtered the reply; change the message.")
        if self._finish_reason is None:
            raise ModelError(502, "The model's stream broke off; send the request again.")
        if self._finish_reason not in FINISHED:
            raise ModelError(502, f"The model did not finish its reply ({self._finish_reason}); see OPENAI_MODEL.")
        if not self.text:
            raise ModelError(502, "The model's reply is empty; send the request again, or change the message.")


class Model:
    """The model that the settings name. Safe under any number of threads.

    A turn has a client for itself, with one connection, and gives it back. One client under hundreds of threads loses
    streams: its pool closes idle connections beyond a limit, also those that it has just assigned to another thread.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: deque[openai.OpenAI] = deque()
        self._tls = ssl.create_default_context()

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Ask, and give the reply when the provider has begun to send it. Raises ModelError."""
        return Reply(self._stream(messages))

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[list[dict[str, Any]]]:
        body = {"model": self._settings.openai_model, "messages": messages, "stream": True}
        with self._client() as client, _our_errors(self._settings):
            # the package's own call without its typed objects, which cost more than twice the time of a whole turn
            response = client.post("/chat/completions", body=body, cast_to=httpx2.Response, stream=True)
            with contextlib.closing(response):
                ends = "Transfer-Encoding" in response.headers or "Content-Length" in response.headers
                yield from _chunks(response.iter_bytes(), ends)

    @contextlib.contextmanager
    def _client(self) -> Iterator[openai.OpenAI]:
        try:
            client = self._clients.pop()
        except IndexError:
            client = self._new_client()
        try:
            yield client
        finally:
            if len(self._clients) < IDLE_CLIENTS:
                self._clients.append(client)
            else:
                client.close()

    def _new_client(self) -> openai.OpenAI:
        timeout = self._settings.openai_timeout
        return openai.OpenAI(
            api_key=self._settings.openai_api_key or "none",  # a local model needs none, the package does
            base_url=self._settings.openai_base_url,
            timeout=timeout,
            max_retries=2,
            http_client=httpx2.Client(
                verify=self._tls,
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30.0),
                event_hooks={"response": [_no_retry_of_rate_limits]},
                follow_redirects=False,
            ),
        )


def _no_retry_of_rate_limits(response: httpx2.Response) -> None:
    if response.status_code == 429:
        response.headers["x-should-retry"] = "false"  # the package obeys it


def _chunks(stream: Iterator[bytes], ends: bool) -> Iterator[list[dict[str, Any]]]:
    """Give the JSON of the events that came together; `ends`: the body has an end that is not that of the connection.

    None after [DONE], of which the end of the body may still follow, which frees the connection for the next turn.
    """
    rest = b""
    for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ModelError(502, "The model's reply is longer than a message may be (1 MiB); ask for a shorter one.")
        chunks, is_done, failure = _parse(lines)
        if chunks:
            yield chunks
        if failure is not None:
            raise failure
        if is_done and not ends:
            return


def _parse(lines: list[bytes]) -> tuple[list[dict[str, Any]], bool, ModelError | None]:
    """Give the JSON of each event, whether the last one was [DONE], and what is wrong with one, if something is."""
    chunks: list[dict[str, Any]] = []
    is_done = False
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        text = line[5:].decode("utf-8", "replace").strip()
        is_done = text == "[DONE]"
        if is_done or not text:
            continue
        try:
            chunk = json.loads(text)
        except (ValueError, RecursionError):
            failure = ModelError(502, "The model's provider sent what is no JSON; see OPENAI_BASE_URL.")
            return chunks, is_done, failure
        if isinstance(chunk, dict):
            chunks.append(chunk)
    return chunks, is_done, None


def _whole_characters(text: str) -> tuple[str, str]:
    """Give the text that can be sent on, and what may be the first half of a character that a piece was cut in.

    Halves are surrogates, which become whole where they belong together, else U+FFFD, as does NUL.
    """
    held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    text = text[: len(text) - len(held)]
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd"), held


@contextlib.contextmanager
def _our_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (openai.APITimeoutError, httpx2.TimeoutException) as exc:
        raise ModelError(504, "The model's provider did not answer in time; try again, or see OPENAI_TIMEOUT.") from exc
    except (openai.APIConnectionError, httpx2.RequestError) as exc:
        message = "The model's provider can't be reached, or broke off; try again, or see OPENAI_BASE_URL."
        raise ModelError(502, message) from exc
    except openai.APIStatusError as exc:
        log.warning("The provider answered %d (%s)", exc.status_code, _codes(exc.body))
        raise _refusal(exc, settings) from None  # its text may repeat the key or the conversation: nothing for a log
    except (openai.OpenAIError, httpx2.HTTPError) as exc:
        raise ModelError(502, "The model's provider can't be used; see the log.") from exc


def _codes(error: Any) -> str:
    """Give what of a provider's error can be logged: names, but no text."""
    fields = error if isinstance(error, dict) else {}
    values = {name: str(fields.get(name)) for name in ("type", "code", "param")}
    return ", ".join(f"{name}: {value}" for name, value in values.items() if re.fullmatch(r"[\w.-]{1,64}", value))


def _refusal(exc: openai.APIStatusError, settings: Settings) -> ModelError:
    status = exc.status_code
    if status in (401, 403):
        return ModelError(502, "The model's provider rejects the service's key; see OPENAI_API_KEY.")
    if status == 404:
        model = settings.openai_model
        return ModelError(502, f"The provider knows no model {model!r}; see OPENAI_MODEL, and OPENAI_BASE_URL.")
    if status == 429:
        retry_after = exc.response.headers.get("retry-after", "")
        usable = retry_after.isascii() and retry_after.isprintable() and retry_after
        message = "The model's provider is over its rate limit or quota; try again later."
        return ModelError(503, message, retry_after if usable else "5")
    if status in (408, 409) or status >= 500:
        return ModelError(502, f"The model's provider failed ({status}); try again.")
    return ModelError(502, f"The model's provider refuses the request ({status}); see OPENAI_MODEL and the log.")
