"""The command that breaks parts at random: that it runs, and that nothing it looks for would pass unnoticed."""

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import report
from tests.chaos_callers import Acknowledged, Caller
from tests.chaos_parts import Wrecker, plan
from tests.services import ROOT


def message(name: str, role: str = "human") -> dict[str, Any]:
    return {"message_id": name, "chat_id": "chat", "content": name, "role": role}


FIRST, QUESTION, REPLY, LAST = message("first"), message("question"), message("reply", "ai"), message("last")
ACKNOWLEDGED = [
    Acknowledged(FIRST, 1, 2),
    Acknowledged(QUESTION, 3, 5),
    Acknowledged(REPLY, 3, 5, "question"),
    Acknowledged(LAST, 4, 6),  # another caller's, at the same time
]
WELL = [FIRST, QUESTION, LAST, REPLY]


def is_well(stored: list[dict[str, Any]], answer: str = "201", unanswered: tuple[str, ...] = ()) -> bool:
    caller = Caller(("", ""), "chat", "seed")
    caller.acknowledged, caller.answers, caller.unanswered = ACKNOWLEDGED, Counter([answer]), list(unanswered)
    return report([caller], stored, Counter(), Wrecker({}), 10)[2]


@pytest.mark.parametrize("stored", [WELL, [FIRST, QUESTION, REPLY, LAST], [FIRST, LAST, QUESTION, REPLY]])
def test_what_is_kept_in_any_order_that_may_be(stored: list[dict[str, Any]]) -> None:
    assert is_well(stored)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param([FIRST, QUESTION, LAST], id="missing"),
        pytest.param([FIRST, QUESTION, LAST, REPLY | {"content": "rep"}], id="changed"),
        pytest.param([*WELL, REPLY], id="twice"),
        pytest.param([*WELL, message("reply again", "ai")], id="a second reply"),
        pytest.param([QUESTION, FIRST, LAST, REPLY], id="swapped"),
        pytest.param([FIRST, REPLY, QUESTION, LAST], id="the reply first"),
    ],
)
def test_what_is_wrong_in_the_store_is_noticed(stored: list[dict[str, Any]]) -> None:
    assert not is_well(stored)


def test_an_answer_of_no_use_is_noticed() -> None:
    assert is_well(WELL, "503")
    assert not is_well(WELL, "500")
    assert not is_well(WELL, unanswered=("question",))


def test_a_seed_repeats_a_plan() -> None:
    parts: Any = [{f"{number}": SimpleNamespace(deeds={"cut": (print, 5)})} for number in range(3)]
    assert len(plan(1, 100, parts)) > 10
    assert plan(1, 100, parts) == plan(1, 100, parts) != plan(2, 100, parts)


@pytest.mark.slow
def test_a_short_run() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "20", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "paid twice" in done.stdout
