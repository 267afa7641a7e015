"""What can break: the parts of the whole system, what may happen to each, and the plan of it."""

import random
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.chats import kill, processes
from tests.postgres import Postgres, lasting_port, suspended
from tests.proxy import Proxy
from tests.services import Service, wait_for

PAUSE = 4.0  # between two faults, at most

Deeds = dict[str, tuple[Callable[[float], object], float]]  # each for up to so many seconds


class Instance:
    """An instance of a service, always at the same port."""

    def __init__(self, module: str, folder: Path, **settings: Any) -> None:
        self.module, self.folder, self.settings = module, folder, {"PORT": lasting_port()} | settings
        self.deeds: Deeds = {
            "kill": (self.kill, 5),
            "kill a worker of": (self.kill_worker, 0),
            "stop": (lambda seconds: stop(processes(self.service), seconds), 9),
            "restart": (self.restart, 0),
        }
        self.start()

    def start(self) -> None:
        self.service = Service(self.module, self.folder, wait=False, **self.settings)
        wait_for(lambda: self.service.get("/health").ok, 60, f"the start of {self.module}")

    def kill(self, seconds: float) -> None:
        kill(self.service)
        time.sleep(seconds)
        self.start()

    def kill_worker(self, _seconds: float) -> None:
        worker = psutil.Process(self.service.workers()[0])
        worker.kill()
        worker.wait(10)

    def restart(self, _seconds: float) -> None:
        assert self.service.stop() == 0, self.service.text()[-2000:]
        self.start()


class Database(Postgres):
    """The PostgreSQL of the whole system."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.deeds: Deeds = {
            "kill": (lambda _: self.restart(signal.SIGKILL), 0),
            "restart": (lambda _: self.restart(signal.SIGINT), 0),
            "stop": (lambda seconds: stop(self.processes(), seconds), 9),
        }


class Wire(Proxy):
    """What connects two parts."""

    def __init__(self, *targets: str | tuple[str, int]) -> None:
        super().__init__(*targets)
        self.url = f"http://127.0.0.1:{self.port}"
        self.deeds: Deeds = {"cut": (lambda _: self.cut(), 0), "silence": (self.silence, 6)}

    def silence(self, seconds: float) -> None:
        self.swallows = True
        time.sleep(seconds)
        self.swallows = False


def stop(its: Sequence[psutil.Process], seconds: float) -> None:
    with suspended(its):
        time.sleep(seconds)


class Fault(NamedTuple):
    """What happens to a part, so many seconds after the beginning, and for how long."""

    at: float
    part: str
    deed: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.deed} {self.part}" + (f" for {self.seconds:.1f} s" if self.seconds else "")


Part = Instance | Database | Wire


def plan(seed: int, seconds: float, groups: Sequence[Mapping[str, Part]]) -> list[Fault]:
    """Return what is to happen within so many seconds, always the same for a seed."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    at = 1.0
    while (at := at + chance.uniform(0, PAUSE)) < seconds:
        name, part = chance.choice(list(chance.choices(groups, (5, 2, 5))[0].items()))
        deed, (_, longest) = chance.choice(list(part.deeds.items()))
        faults.append(Fault(at, name, deed, chance.uniform(0, longest)))
    return faults


class Wrecker:
    """Breaks parts, in threads; one breaks again only when it is well."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts, self.beginning = parts, time.monotonic()
        self.locks = {name: threading.Lock() for name in parts}
        self.under_way: list[Fault] = []
        self.happened: list[tuple[float, float, Fault]] = []  # when each began and ended

    def do(self, fault: Fault) -> None:
        time.sleep(max(0.0, self.beginning + fault.at - time.monotonic()))
        with self.locks[fault.part]:
            began = time.monotonic()
            self.under_way.append(fault)
            self.parts[fault.part].deeds[fault.deed][0](fault.seconds)
            self.under_way.remove(fault)
            self.happened.append((began, time.monotonic(), fault))

    def meanwhile(self, since: float, until: float) -> str:
        """Return what was broken between two points in time, for people to read."""
        broken = [item for item in sorted(self.happened) if item[0] < until and item[1] > since]
        faults = "; ".join(f"{fault} {self.span(began, ended)}" for began, ended, fault in broken)
        return f"{self.span(since, until)}: {faults or 'nothing was broken'}"

    def span(self, since: float, until: float) -> str:
        return f"from {since - self.beginning:.1f} to {until - self.beginning:.1f}"
