"""Pure functions: which earlier messages fit, and the ids that follow from other ids."""

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]  # as the persistence service returns it


def reply_id(message_id: str) -> str:
    """Return the id of the reply to this message: always the same, so that there is only one."""
    return _follow("reply", message_id)


def chat_id(message_id: str) -> str:
    """Return the id of the chat that this message begins."""
    return _follow("chat", message_id)


def _follow(purpose: str, origin: str) -> str:
    digest = hashlib.sha256(f"{purpose}:{origin}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def window(newest_first: Iterable[Message], max_chars: int) -> list[Message]:
    """Return the newest messages that fit, oldest first: whole ones, with no gap. Reads no further than it must."""
    kept: list[Message] = []
    for message in newest_first:
        max_chars -= len(message["content"])
        if max_chars < 0:
            break
        kept.append(message)
    return kept[::-1]


def prompt(system: str, earlier: Sequence[Message], content: str) -> list[dict[str, str]]:
    """Return what the model is told, in the form of OpenAI's Chat Completions."""
    roles = {"human": "user", "ai": "assistant"}
    history = [{"role": roles[message["role"]], "content": message["content"]} for message in earlier]
    return [{"role": "system", "content": system}, *history, {"role": "user", "content": content}]
