"""What can break: the parts of the whole system, what may happen to each, and the plan of it."""

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.chats import kill, processes
from tests.postgres import Postgres
from tests.proxy import Proxy
from tests.services import Service, wait_for

PAUSE = 4.0  # between two faults, at most
CALL_SECONDS = 1.5  # a call to the model is over by then

Deeds = dict[str, tuple[Callable[[float], None], float]]  # each for up to so many seconds


class Instance:
    """An instance of a service, always at the same port."""

    def __init__(self, module: str, folder: Path, **settings: Any) -> None:
        self.module, self.folder, self.settings = module, folder, {"PORT": lasting_port()} | settings
        self.deeds: Deeds = {
            "kill": (self.kill, 5),
            "kill a worker of": (self.kill_worker, 0),
            "stop": (self.stop, 9),
            "restart": (self.restart, 0),
        }
        self.start()

    def start(self) -> None:
        self.service = Service(self.module, self.folder, wait=False, **self.settings)
        wait_for(lambda: self.service.get("/health").ok, what=f"the start of {self.module}")

    def kill(self, seconds: float) -> None:
        kill(self.service)
        time.sleep(seconds)
        self.start()

    def kill_worker(self, _seconds: float) -> None:
        worker = psutil.Process(self.service.workers()[0])
        worker.kill()
        worker.wait(10)

    def stop(self, seconds: float) -> None:
        stopped = processes(self.service)
        for process in stopped:
            process.suspend()
        time.sleep(seconds)
        for process in stopped:
            process.resume()

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
            "stop": (self.stop, 9),
        }

    def stop(self, seconds: float) -> None:
        with self.stopped():
            time.sleep(seconds)


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


def lasting_port() -> int:
    """Return a port that no outgoing connection takes while the service that is to have it is away."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as probe:
            port = random.randrange(first // 2, first)
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Fault(NamedTuple):
    """What happens to a part, so many seconds after the beginning, and for how long."""

    at: float
    part: str
    deed: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.deed} {self.part}" + (f" for {self.seconds:.1f} s" if self.seconds else "")


Part = Instance | Database | Wire


def plan(seed: int, seconds: float, groups: Sequence[dict[str, Part]]) -> list[Fault]:
    """Return what is to happen within so many seconds, always the same for a seed."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    at = 1.0
    while (at := at + chance.uniform(0, PAUSE)) < seconds:
        name, part = chance.choice(list(chance.choices(groups, (5, 2, 5))[0].items()))
        deed, (_, longest) = chance.choice(list(part.deeds.items()))
        faults.append(Fault(at, name, deed, chance.uniform(0, longest)))
    return faults


class Happening(NamedTuple):
    """A fault, and when it began and ended."""

    fault: Fault
    began: float
    ended: float


class Wrecker:
    """Breaks parts, in threads; one breaks again only when it is well."""

    def __init__(self, parts: dict[str, Part], beginning: float) -> None:
        self.parts, self.beginning = parts, beginning
        self.locks = {name: threading.Lock() for name in parts}
        self.under_way: list[Fault] = []
        self.happened: list[Happening] = []

    def do(self, fault: Fault) -> None:
        with self.locks[fault.part]:
            began = time.monotonic()
            self.under_way.append(fault)
            self.parts[fault.part].deeds[fault.deed][0](fault.seconds)
            self.under_way.remove(fault)
            self.happened.append(Happening(fault, began, time.monotonic()))

    def meanwhile(self, since: float, until: float) -> str:
        """Return what was broken between two points in time, for people to read."""
        faults = map(self.describe, self.broken(since, until))
        return f"{self.span(since, until)}: {'; '.join(faults) or 'nothing was broken'}"

    def cause(self, instance: str, since: float, until: float) -> str:
        """Return why a call to the model was lost: what ended its instance, else what broke that or its wire."""
        ends = {instance: until, f"the wire between {instance} and the model": min(until, since + CALL_SECONDS)}
        broken = [item for item in self.broken(since, until) if item.began < ends.get(item.fault.part, 0.0)]
        broken.sort(key=lambda item: "kill" not in item.fault.deed)
        return self.describe(broken[0]) if broken else ""

    def broken(self, since: float, until: float) -> list[Happening]:
        found = [item for item in self.happened if item.began < until and item.ended > since]
        return sorted(found, key=attrgetter("began"))

    def describe(self, item: Happening) -> str:
        return f"{item.fault} {self.span(item.began, item.ended)}"

    def span(self, since: float, until: float) -> str:
        return f"from {since - self.beginning:.1f} to {until - self.beginning:.1f}"

    def present(self) -> str:
        """Return what is broken now."""
        return "; ".join(map(str, self.under_way.copy())) or "all is well"
