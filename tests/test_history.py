import re
import uuid
from collections.abc import Callable

import pytest

from chat.history import Message, chat_id, prompt, reply_id, window
from persistence.web.fields import UUID4

IDS = [str(uuid.uuid4()) for _ in range(200)]


def message(content: str, role: str = "human") -> Message:
    return {"content": content, "role": role}


@pytest.mark.parametrize("follow", [reply_id, chat_id])
def test_an_id_that_follows_has_the_shape_of_version_4(follow: Callable[[str], str]) -> None:
    assert all(re.fullmatch(UUID4, follow(origin)) for origin in IDS)


def test_an_id_that_follows_is_always_the_same() -> None:
    origin = "0b0d2f6e-3c51-4f0a-9a64-5f1a3c0f7e21"
    assert reply_id(origin) == "a4700907-5abc-4a3a-b715-6b0faf7f9d01"
    assert chat_id(origin) == "203f286f-45b1-4257-a52f-f2099399289e"


def test_ids_that_follow_all_differ() -> None:
    assert len({*IDS, *map(reply_id, IDS), *map(chat_id, IDS)}) == 3 * len(IDS)


@pytest.mark.parametrize(
    ("contents", "max_chars", "kept", "read"),
    [
        ([], 100, [], 0),
        (["c", "b", "a"], 100, ["a", "b", "c"], 3),
        (["cc", "bb", "aa"], 4, ["bb", "cc"], 3),
        (["cc", "bb", "aa"], 3, ["cc"], 2),
        (["cc", "too long", "a"], 4, ["cc"], 2),
        (["\U0001f600\U0001f600"], 2, ["\U0001f600\U0001f600"], 1),
    ],
)
def test_the_window_keeps_the_newest_whole_messages_and_reads_no_further(
    contents: list[str], max_chars: int, kept: list[str], read: int
) -> None:
    messages = map(message, contents)
    assert [message["content"] for message in window(messages, max_chars)] == kept
    assert len(list(messages)) == len(contents) - read


def test_the_prompt_has_the_system_first_and_the_question_last() -> None:
    assert prompt("be kind", [message("hi"), message("hello", "ai")], "bye") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
