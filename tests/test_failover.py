"""A highly available PostgreSQL, two instances of each service, and callers who repeat, while parts of it fail."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import requests

from tests import patroni_cluster
from tests.chaos_callers import Caller, judge, talking, turns_of
from tests.chats import kill
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id
from tests.patroni_cluster import Cluster, Node
from tests.postgres import lasting_port
from tests.services import KEY, Service, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(patroni_cluster.missing()), reason=f"needs {patroni_cluster.missing()}"),
]
ANSWERS = {"200", "201", "503", "cut off", "timed out"}  # the callers hang up themselves after some seconds


class System(NamedTuple):
    """The cluster, the addresses of the balancer, what starts each instance, and the instances."""

    cluster: Cluster
    urls: tuple[str, str]
    starts: dict[str, Callable[[], Service]]
    instances: dict[str, Service]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, model_server: FakeOpenAI) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("failover")
    for parent in [folder, *folder.parents[:3]]:
        parent.chmod(parent.stat().st_mode | 0o711)
    ports = {name: [lasting_port(), lasting_port()] for name in ("persistence", "chat")}
    with closing(Cluster(folder, ports)) as cluster:
        cluster.start()
        app, chat = (f"http://127.0.0.1:{cluster.ports[name]}" for name in ports)
        # one knows the three nodes, the other one what leads to the primary
        own: list[tuple[str, dict[str, Any]]] = [
            ("persistence", {"DATABASE_URL": url, "API_KEY": KEY}) for url in cluster.urls
        ]
        own += [("chat", {"API_BASE_URL": app, "OPENAI_BASE_URL": model_server.url})] * 2
        starts: dict[str, Callable[[], Service]] = {
            f"{name} {number % 2}": partial(Service, name, folder, PORT=ports[name][number % 2], **settings)
            for number, (name, settings) in enumerate(own)
        }
        instances = {name: start() for name, start in starts.items()}
        for url in (app, chat):
            wait_for(lambda url=url: requests.get(f"{url}/ready", timeout=5).ok)  # type: ignore[misc]
        yield System(cluster, (app, chat), starts, instances)
        for instance in instances.values():
            instance.stop()


class Looks(threading.Thread):
    """Asks an instance five times a second if it is ready, and notes when it was not, or was not there."""

    def __init__(self, instance: Service) -> None:
        super().__init__(daemon=True)
        self.url, self.ending, self.not_ready = f"{instance.url}/ready", threading.Event(), [0.0]

    def run(self) -> None:
        while not self.ending.wait(0.2):
            began = time.monotonic()
            try:
                is_ready = requests.get(self.url, timeout=5).ok
            except requests.RequestException:
                is_ready = False
            if not is_ready:
                self.not_ready.append(began)


def wait_for_another(cluster: Cluster, primary: Node) -> None:
    wait_for(lambda: cluster.members().get("leader") not in (primary, None), 90, "another primary")


def kill_primary(system: System) -> None:
    primary = system.cluster.members()["leader"]
    primary.kill()
    wait_for_another(system.cluster, primary)
    primary.start()


def stop_primary(system: System) -> None:
    primary = system.cluster.members()["leader"]
    primary.send(signal.SIGSTOP)
    wait_for_another(system.cluster, primary)
    primary.send(signal.SIGCONT)


def stop_etcd(system: System) -> None:
    system.cluster.etcd.send_signal(signal.SIGSTOP)
    time.sleep(20)
    system.cluster.etcd.send_signal(signal.SIGCONT)


def kill_instance(system: System, name: str) -> None:
    kill(system.instances[name])
    time.sleep(3)
    system.instances[name] = system.starts[name]()


FAULTS: dict[str, Callable[[System], None]] = {
    "switchover": lambda system: system.cluster.switch_over(),
    "kill the primary": kill_primary,
    "stop the primary": stop_primary,
    "stop etcd": stop_etcd,
    "kill persistence 0": partial(kill_instance, name="persistence 0"),
    "kill chat 0": partial(kill_instance, name="chat 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_failover_loses_nothing(system: System, model: FakeOpenAI, fault: str) -> None:
    system.cluster.wait_until_whole()
    chats = [new_id() for _ in range(8)]
    callers = [Caller(system.urls, chats[number // 2], str(number)) for number in range(16)]
    # the one that is killed must be ready again to have started
    looks = [Looks(instance) for name, instance in system.instances.items() if name not in fault]
    for look in looks:
        look.start()

    def wait_for_more() -> None:
        goals = [len(caller.acknowledged) + 3 for caller in callers]
        wait_for(lambda: all(len(caller.acknowledged) > goal for caller, goal in zip(callers, goals, strict=True)), 90)

    with talking(callers):
        wait_for_more()
        FAULTS[fault](system)
        wait_for_more()
        system.cluster.wait_until_whole()
        wait_for_more()
    for look in looks:
        look.ending.set()
        look.join()
    acknowledged = [item for caller in callers for item in caller.acknowledged]
    answers = sum((caller.answers for caller in callers), Counter[str]())
    gap, again = max((after - before, after) for before, after in pairwise(sorted(item.ended for item in acknowledged)))
    turns = turns_of(model)
    print(  # noqa: T201
        f"\n{fault}: {len(acknowledged)} acknowledged, {sum(caller.repeats for caller in callers)} repeated, "
        f"{dict(answers)}, {gap:.1f} s without one, {turns.total()} calls to the model, "
        f"{turns.total() - len(turns)} paid twice"
    )
    lists = [system.instances["persistence 1"].get("/messages/", params={"chat_id": chat_id}) for chat_id in chats]
    verdict = judge(acknowledged, [message for found in lists for message in found.json()])
    assert verdict.missing == verdict.double == verdict.out_of_order == []
    assert len(verdict.kept) == len(acknowledged)
    assert answers.keys() <= ANSWERS
    late = {look.url: look.not_ready[-1] - again for look in looks if look.not_ready[-1] >= again + 2}
    assert late == {}
