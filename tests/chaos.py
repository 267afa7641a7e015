"""python -m tests.chaos: the whole system on this machine, callers who talk, and parts that break at random.

Two instances of each service, over one PostgreSQL and a model, behind balancers that only know who refuses connections.
Parts are killed, stopped, restarted, cut off and silenced; callers send each request until it is acknowledged. Prints
one table. Exits with 1 if a message is missing, double or out of order, or a request got no answer, or one of no use.
"""

import argparse
import contextlib
import itertools
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from tests.chaos_callers import PASSING, RECOVERY_SECONDS, Caller, Message, judge, talking, turns_of
from tests.chaos_parts import Database, Instance, Part, Wire, Wrecker, plan
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id
from tests.services import KEY, wait_for

CALLERS = 16


class System:
    """All parts: instances, PostgreSQL, and the wires between them. The callers know `urls`."""

    def __init__(self, folder: Path, model: FakeOpenAI, stack: contextlib.ExitStack) -> None:
        database = Database(folder / "data")
        stack.callback(database.stop)
        url = database.make_database()
        self.instances: dict[str, Instance] = {}
        self.wires: dict[str, Wire] = {}
        stack.callback(self.stop)
        for number in (1, 2):
            to_database = self.wire(f"app {number} and PostgreSQL", database.socket)
            database_url = make_conninfo(url, host="127.0.0.1", port=to_database.port)
            self.instances[f"app {number}"] = Instance("persistence", folder, DATABASE_URL=database_url, API_KEY=KEY)
        apps = self.addresses()
        for number in (1, 2):
            urls = {
                "API_BASE_URL": self.wire(f"chat {number} and app", *apps).url,
                "OPENAI_BASE_URL": self.wire(f"chat {number} and the model", ("127.0.0.1", model.server_port)).url,
            }
            self.instances[f"chat {number}"] = Instance("chat", folder, **urls, OPENAI_TIMEOUT=5, GRACEFUL_TIMEOUT=20)
        to_app, to_chat = self.wire("callers and app", *apps), self.wire("callers and chat", *self.addresses()[2:])
        self.urls = to_app.url, to_chat.url
        self.groups: list[dict[str, Part]] = [{**self.instances}, {"PostgreSQL": database}, {**self.wires}]

    def wire(self, between: str, *targets: str | tuple[str, int]) -> Wire:
        self.wires[f"the wire between {between}"] = wire = Wire(*targets)
        return wire

    def addresses(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", instance.service.port) for instance in self.instances.values()]

    def stop(self) -> None:
        for instance in reversed(self.instances.values()):
            instance.service.stop()

    def wait_until_ready(self) -> None:
        for name, instance in self.instances.items():
            wait_for(instance.service.is_up, RECOVERY_SECONDS, name)


def run(system: System, seed: int, seconds: float) -> tuple[list[Caller], Wrecker]:
    """Let the callers talk while the plan is carried out, and until each has its last answer."""
    faults = plan(seed, seconds, system.groups)
    wrecker = Wrecker({name: part for group in system.groups for name, part in group.items()})
    end = wrecker.beginning + seconds
    chat_ids = [new_id() for _ in range(CALLERS // 2)]  # two callers to a chat
    callers = [Caller(system.urls, chat_ids[number // 2], f"{seed} {number}", end) for number in range(CALLERS)]
    with talking(callers):
        with ThreadPoolExecutor(len(faults) + 1) as pool:
            deeds = [pool.submit(wrecker.do, fault) for fault in faults]
            while (now := time.monotonic()) < end:
                count = sum(len(caller.acknowledged) for caller in callers)
                broken = "; ".join(map(str, wrecker.under_way.copy())) or "all is well"
                show(f"{seconds - end + now:4.0f} s of {seconds:.0f}, {count} acknowledged; {broken}")
                time.sleep(0.1)
        for deed in deeds:
            deed.result()
        show("all is repaired; the last answers\n")
        system.wait_until_ready()
    return callers, wrecker


def show(progress: str) -> None:
    sys.stderr.write(f"\r{progress:<119.119}")
    sys.stderr.flush()


def report(
    callers: Sequence[Caller], stored: Sequence[Message], turns: Counter[str], wrecker: Wrecker, seconds: float
) -> tuple[dict[str, object], list[str], bool]:
    """Return the rows of the table, what explains them, and whether all is as it should be."""
    acknowledged = [item for caller in callers for item in caller.acknowledged]
    answers = sum((caller.answers for caller in callers), Counter[str]())
    unanswered = sum(len(caller.unanswered) for caller in callers)
    of_no_use = [status for status in answers if status.isdigit() and status not in ("200", "201", *PASSING)]
    verdict = judge(acknowledged, stored)
    end = wrecker.beginning + seconds  # the callers fall silent one by one
    moments = [wrecker.beginning, *sorted(item.ended for item in acknowledged if item.ended < end), end]
    silence = max(itertools.pairwise(moments), key=lambda pair: pair[1] - pair[0])
    slowest = max(acknowledged, key=lambda item: item.ended - item.began)
    rows: dict[str, object] = {
        "faults": len(wrecker.happened),
        "requests sent": answers.total(),
        **{f"  answered {name}" if name.isdigit() else f"  {name}": answers[name] for name in sorted(answers)},
        "  of them repeats": sum(caller.repeats for caller in callers),
        "never acknowledged": unanswered,
        "messages acknowledged": len(acknowledged),
        **{f"  {name.replace('_', ' ')}": len(ids) for name, ids in verdict._asdict().items()},
        "turns": sum(item.question is not None for item in acknowledged),
        "replies stored": sum(message["role"] == "ai" for message in stored),
        "calls to the model": turns.total(),
        "  paid twice": turns.total() - len(turns),
        "longest time without an acknowledgment": f"{silence[1] - silence[0]:.1f} s",
        "longest time of a request, repeats included": f"{slowest.ended - slowest.began:.1f} s",
    }
    notes = [
        f"no acknowledgment {wrecker.meanwhile(*silence)}",
        f"the longest request, {slowest.message['message_id']}, {wrecker.meanwhile(slowest.began, slowest.ended)}",
        *(
            f"paid twice, {item.question} {wrecker.meanwhile(item.began, item.ended)}"
            for item in acknowledged
            if turns[item.question or ""] > 1
        ),
    ]
    is_well = not (verdict.missing or verdict.double or verdict.out_of_order or unanswered or of_no_use)
    return rows, notes, is_well


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="repeats a run: the same faults")
    parser.add_argument("--folder", type=Path, help="where the logs are to stay")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with contextlib.ExitStack() as stack:
        folder: Path = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        model = FakeOpenAI()
        stack.callback(model.stop)
        system = System(folder.absolute(), model, stack)
        system.wait_until_ready()
        callers, wrecker = run(system, options.seed, options.seconds)
        stored: Any = system.instances["app 1"].service.get("/messages/").json()
    rows, notes, is_well = report(callers, stored, turns_of(model), wrecker, options.seconds)
    rows = {f"seed {options.seed}, {options.seconds:.0f} s, {CALLERS} callers": ""} | rows
    lines = [f"| {what:<43} | {figure:>8} |" for what, figure in rows.items()]
    sys.stdout.write("\n".join([*lines, *notes, ""]))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
