"""What the provider streams, in OpenAI's Chat Completions: its chunks, and the pieces of the reply in them."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from chat.errors import ModelError

MAX_REPLY_BYTES = 1024 * 1024 - 512  # as JSON in UTF-8: a message of 1 MiB, less its other fields
MAX_LINE_BYTES = 2 * MAX_REPLY_BYTES
FINISHED = ("stop", "length")
TOO_LONG = "The model's reply is longer than a message may be (1 MiB); ask for a shorter one."

log = logging.getLogger(__name__)


def chunks(body: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Return the JSON of each event up to [DONE]. (Lines end with \\n; httpx2's iter_lines also cuts at U+2028.)"""
    rest = b""
    for data in body:
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ModelError(502, TOO_LONG)
        for line in lines:
            text = line[5:].strip() if line.startswith(b"data:") else b""
            if text == b"[DONE]":
                return
            if text:
                try:
                    chunk = json.loads(text.decode("utf-8", "replace"))
                except (ValueError, RecursionError):
                    raise ModelError(502, "The model's provider sent what is not JSON; see OPENAI_BASE_URL.") from None
                if isinstance(chunk, dict):
                    yield chunk


def read(chunk: dict[str, Any], report: dict[str, Any]) -> str:
    """Return the piece of text in a chunk, and note what else it says in `report`."""
    if error := chunk.get("error"):
        log.warning("The provider ended the stream with an error (%s)", codes(error))
        raise ModelError(502, "The model's provider broke off its reply; send the request again.")
    if isinstance(usage := chunk.get("usage"), dict):
        report |= {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        return ""
    report["finish_reason"] = choice.get("finish_reason") or report["finish_reason"]
    delta = choice.get("delta")
    content = delta.get("content") if isinstance(delta, dict) else None
    return content if isinstance(content, str) else ""


def storable(text: str) -> str:
    """Return the text with U+FFFD for each NUL and each half of a surrogate pair that has no other half."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", "\ufffd")


def check_end(text: str, finish_reason: str | None) -> None:
    """Raise ModelError if the reply is unfinished, filtered or empty."""
    if finish_reason == "content_filter":
        raise ModelError(502, "The model's provider filtered the reply; change the message.")
    if finish_reason is None:
        raise ModelError(502, "The model's stream broke off; send the request again.")
    if finish_reason not in FINISHED:
        raise ModelError(502, f"The model did not finish its reply ({finish_reason}); see OPENAI_MODEL.")
    if not text:
        raise ModelError(502, "The model's reply is empty; send the request again, or change the message.")


def codes(error: Any) -> str:
    """Return what of a provider's error can be logged: names, but no text."""
    fields = error if isinstance(error, dict) else {}
    values = {name: str(fields.get(name)) for name in ("type", "code", "param")}
    return ", ".join(f"{name}: {value}" for name, value in values.items() if re.fullmatch(r"[\w.-]{1,64}", value))
