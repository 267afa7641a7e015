"""A highly available PostgreSQL, two instances of each service, and callers who repeat, while parts of it fail."""

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import requests

from tests import patroni_cluster
from tests.chaos_callers import Caller, Model, judge
from tests.chats import kill
from tests.messages import new_id
from tests.patroni_cluster import Cluster
from tests.services import KEY, Service, free_port, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(patroni_cluster.missing()), reason=f"needs {patroni_cluster.missing()}"),
]
ANSWERS = {"200", "201", "503", "cut off", "timed out"}  # the callers hang up themselves after some seconds


class System(NamedTuple):
    """The cluster, the addresses of the balancer, the instances, and what starts one of them again."""

    cluster: Cluster
    urls: tuple[str, str]
    instances: dict[str, Service]
    start: Callable[[str, int], None]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.stop()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("failover")
    for parent in [folder, *folder.parents[:3]]:
        parent.chmod(parent.stat().st_mode | 0o711)
    ports = {name: [free_port(), free_port()] for name in ("persistence", "chat")}
    instances: dict[str, Service] = {}
    with patroni_cluster.running(folder, ports) as cluster:
        urls = tuple(f"http://127.0.0.1:{cluster.ports[name]}" for name in ports)

        def start(name: str, number: int) -> None:
            database = cluster.urls[number]  # of the three nodes, or of what leads to the primary
            own: dict[str, dict[str, Any]] = {
                "persistence": {"DATABASE_URL": database, "API_KEY": KEY},
                "chat": {"API_BASE_URL": urls[0], "OPENAI_BASE_URL": model.url},
            }
            instances[f"{name} {number}"] = Service(name, folder, PORT=ports[name][number], **own[name])

        for name in ports:
            for number in (0, 1):
                start(name, number)
        for url in urls:
            wait_for(lambda url=url: requests.get(f"{url}/ready", timeout=5).ok, 30)  # type: ignore[misc]
        yield System(cluster, (urls[0], urls[1]), instances, start)
        for instance in instances.values():
            instance.stop()


class Looks(threading.Thread):
    """Asks an instance five times a second if it is ready, and notes when it was not, or was not there."""

    def __init__(self, instance: Service) -> None:
        super().__init__(daemon=True)
        self.url, self.ending, self.not_ready = f"{instance.url}/ready", threading.Event(), [0.0]

    def run(self) -> None:
        while not self.ending.wait(0.2):
            try:
                is_ready = requests.get(self.url, timeout=5).ok
            except requests.RequestException:
                is_ready = False
            if not is_ready:
                self.not_ready.append(time.monotonic())


def switch_over(system: System) -> None:
    system.cluster.switch_over()


def kill_primary(system: System) -> None:
    primary = system.cluster.primary()
    primary.kill()
    wait_for(lambda: system.cluster.members().get("leader") not in (primary, None), 60, "another primary")
    primary.start()


def stop_primary(system: System) -> None:
    primary = system.cluster.primary()
    primary.send(signal.SIGSTOP)
    wait_for(lambda: system.cluster.members().get("leader") not in (primary, None), 60, "another primary")
    primary.send(signal.SIGCONT)


def stop_etcd(system: System) -> None:
    system.cluster.etcd.send_signal(signal.SIGSTOP)
    time.sleep(20)
    system.cluster.etcd.send_signal(signal.SIGCONT)


def kill_persistence(system: System) -> None:
    kill(system.instances["persistence 0"])
    time.sleep(3)
    system.start("persistence", 0)


def kill_chat(system: System) -> None:
    kill(system.instances["chat 0"])
    time.sleep(3)
    system.start("chat", 0)


@pytest.mark.parametrize("fault", [switch_over, kill_primary, stop_primary, stop_etcd, kill_persistence, kill_chat])
def test_failover_loses_nothing(system: System, model: Model, fault: Callable[[System], None]) -> None:
    system.cluster.wait_until_whole()
    model.calls.clear()
    chats = [new_id() for _ in range(8)]
    callers = [Caller(system.urls, chats[number // 2], str(number), math.inf) for number in range(16)]
    killed = f"{fault.__name__.removeprefix('kill_')} 0"  # which must be ready again to have started
    looks = [Looks(instance) for name, instance in system.instances.items() if name != killed]
    for thread in (*callers, *looks):
        thread.start()

    def wait_for_more() -> None:
        before = [len(caller.acknowledged) for caller in callers]
        wait_for(
            lambda: all(len(c.acknowledged) > n + 3 or c.problem for c, n in zip(callers, before, strict=True)), 90
        )

    wait_for_more()
    fault(system)
    wait_for_more()
    system.cluster.wait_until_whole()
    wait_for_more()
    for caller in callers:
        caller.end = 0
    for caller in callers:
        caller.join()
    for look in looks:
        look.ending.set()
        look.join()
    acknowledged = [item for caller in callers for item in caller.acknowledged]
    answers = sum((caller.answers for caller in callers), Counter[str]())
    times = sorted(item.ended for item in acknowledged)
    gap, again = max((after - before, after) for before, after in pairwise(times))
    twice = len(model.calls) - len({call.turn for call in model.calls})
    print(  # noqa: T201
        f"\n{fault.__name__}: {len(acknowledged)} acknowledged, {sum(c.repeats for c in callers)} repeated, "
        f"{dict(answers)}, {gap:.1f} s without one, {len(model.calls)} calls to the model, {twice} paid twice"
    )
    stored = [
        message
        for chat_id in chats
        for message in requests.get(
            f"{system.urls[0]}/messages/", params={"chat_id": chat_id}, headers={"x-api-key": KEY}, timeout=30
        ).json()
    ]
    verdict = judge(acknowledged, stored)
    assert [caller.problem for caller in callers if caller.problem] == []
    assert verdict.missing == verdict.double == verdict.out_of_order == []
    assert len(verdict.kept) == len(acknowledged)
    assert answers.keys() <= ANSWERS
    late = {look.url: look.not_ready[-1] - again for look in looks if look.not_ready[-1] >= again + 2}
    assert late == {}
