"""A primary and its synchronous standby: what is acknowledged is on both, and the service finds the one that writes."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import pytest
import requests

from chat.history import reply_id
from persistence.listing import NDJSON
from tests.chats import new_turn, post_turn, running, stored
from tests.fake_openai import FakeOpenAI
from tests.load import Load
from tests.messages import new_id, new_message, store
from tests.postgres import Postgres
from tests.services import KEY, Service, seconds_of, wait_for

pytestmark = pytest.mark.slow

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'persistence'"


class Pair:
    """A primary, and a standby without which it acknowledges nothing."""

    def __init__(self, folder: Path) -> None:
        self.primary = Postgres(folder / "primary")
        self.standby = Postgres(folder / "standby", self.primary)
        self.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.run("SELECT pg_reload_conf()")
        self.wait()
        self.url = f"postgresql://postgres@127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}/postgres"

    def wait(self) -> None:
        """Wait until the standby follows."""
        wait_for(lambda: self.primary.run("SELECT sync_state FROM pg_stat_replication") == [("sync",)])

    def fail_over(self) -> None:
        """Make the standby the primary, with no standby of its own."""
        self.standby.run("ALTER SYSTEM SET synchronous_standby_names = ''")
        self.standby.promote()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.standby.kill()
    made.primary.kill()


@pytest.fixture
def service(make_service: Callable[..., Service], pair: Pair) -> Service:
    return make_service("persistence", DATABASE_URL=pair.url, API_KEY=KEY)


def stores(service: Service) -> bool:
    return service.post("/messages/", json=new_message()).status_code == 201


def answers(calls: list[Callable[[], requests.Response]]) -> list[int]:
    """Make the calls at the same time, and return their statuses."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call().status_code, calls))


def test_the_work_goes_on_at_the_standby_while_the_first_host_is_silent(
    pair: Pair, service: Service, make_service: Callable[..., Service]
) -> None:
    with Load(service) as load, pair.primary.stopped():
        status, seconds = seconds_of(lambda: service.get("/ready"))
        assert (status, seconds < 1.5) == (503, True)
        pair.fail_over()
        load.wait_for_more()
        wait_for(lambda: all(service.get("/ready").ok for _ in range(20)), 5, "the readiness of both workers")
        assert max(seconds_of(lambda: service.get("/ready"))[1] for _ in range(20)) < 1
        make_service("persistence", DATABASE_URL=pair.url, API_KEY=KEY)  # which becomes ready
    load.check()
    assert f"The database is at 127.0.0.1:{pair.standby.port}" in service.text()


def test_a_repeat_is_acknowledged_when_the_standby_has_it(pair: Pair, service: Service) -> None:
    stored, new, line = store(service), new_message(message_id=new_id()), new_message(message_id=new_id())
    calls: list[Callable[[], requests.Response]] = [
        lambda: service.post("/messages/", json=new),
        lambda: service.post("/messages/", data=f"{json.dumps(line)}\n", headers={"Content-Type": NDJSON}),
        lambda: service.request("DELETE", f"/messages/{stored['message_id']}"),
    ]
    with pair.standby.stopped():
        assert answers(calls) == [503, 503, 503]
        pair.primary.kill()
        pair.primary.start()
        wait_for(lambda: service.get("/ready").ok)
        there = [service.get(f"/messages/{message['message_id']}").status_code for message in (new, line, stored)]
        assert there == [200, 200, 404]  # it was done
        assert answers(calls) == [503, 503, 503]  # and the primary alone has it
    pair.wait()
    assert answers(calls) == [200, 200, 404]
    pair.primary.kill()
    pair.fail_over()
    wait_for(lambda: service.get("/ready").ok)
    kept = [message["message_id"] for message in service.get("/messages/").json()]
    assert kept == [new["message_id"], line["message_id"]]


def test_a_chats_repeat_waits_for_the_standby_too(
    pair: Pair, service: Service, model: FakeOpenAI, make_service: Callable[..., Service]
) -> None:
    chat = make_service("chat", API_BASE_URL=service.url, OPENAI_BASE_URL=model.url)
    turn = new_turn("hello")
    model.may_answer.clear()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(post_turn, chat, turn)]
        wait_for(lambda: model.requests)
        calls.append(pool.submit(post_turn, chat, turn))  # which looks for the first one's reply again and again
        wait_for(lambda: reply_id(turn["message_id"]) in service.text())
        with pair.standby.stopped():
            model.may_answer.set()
            wait_for(lambda: pair.primary.run("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
            pair.primary.kill()
            pair.primary.start()
            wait_for(lambda: len(stored(service, turn)) == 2)
            assert not wait(calls, 16).done  # for longer than a request may take
        assert [call.result().status_code for call in calls] == [200, 200]
    assert len(model.requests) == 1


def test_what_is_given_up_leaves_nothing_at_work(pair: Pair, service: Service) -> None:
    with Load(service, 32) as load:
        with pair.standby.stopped():
            end = time.monotonic() + 25  # more than two rounds of requests that are given up
            while time.monotonic() < end:
                ((count,),) = pair.primary.run(OURS)
                assert count <= 2 * (8 + 1)
                time.sleep(0.2)
        load.wait_for_more()
    load.check()


def test_a_start_at_a_standby_waits_for_its_promotion(pair: Pair, service: Service, folder: Path) -> None:
    pair.primary.run("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data, pg_write_all_data")
    pair.primary.run("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO reader")
    url = pair.standby.conninfo.replace("user=postgres", "user=reader")  # which may not create anything
    settings = {"API_KEY": KEY, "WEB_CONCURRENCY": 1}
    with (
        running("persistence", folder, wait=False, DATABASE_URL=url, **settings) as strict,
        running("persistence", folder, wait=False, DATABASE_URL=f"{url} target_session_attrs=any", **settings) as lax,
    ):
        wait_for(lambda: "read-only" in strict.text())
        wait_for(lambda: lax.get("/messages/").ok)
        for response in (lax.get("/ready"), strict.get("/ready"), lax.post("/messages/", json=new_message())):
            assert (response.status_code, "Retry-After" in response.headers) == (503, True)
        wait_for(lambda: '"reason": "the server is read-only"' in lax.text())
        pair.primary.kill()
        pair.fail_over()
        for waiting in (strict, lax):
            wait_for(partial(stores, waiting))
            assert waiting.get("/ready").ok
            assert "CREATE" not in waiting.text()
