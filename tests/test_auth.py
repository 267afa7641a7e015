import sys
from types import FrameType
from typing import Any

import pytest

from persistence.web import auth

KEYS = (b"first-key", b"second-key", b"third")


@pytest.mark.parametrize("key", [*KEYS, b"first-kex", b"x", b"\xff" * 9, b"first-key-and-more"])
def test_each_key_is_compared_in_constant_time_whatever_is_given(key: bytes) -> None:
    """How long it takes must not tell how much of a key was right, nor which one: so it is looked at what is called."""
    called: list[str] = []

    def note(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            called.append(function.__name__)

    sys.setprofile(note)
    try:
        found = auth.is_one_of(key, KEYS)
    finally:
        sys.setprofile(None)
    assert found == (key in KEYS)
    assert called.count("compare_digest") == len(KEYS)  # of the standard library: reads all of both, always
