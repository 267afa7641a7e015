"""One bill a turn: a request that is sent again while the first is at work waits for its reply, on any instance."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests

from chat.history import reply_id
from tests import chats
from tests.chats import answer_of, error_of, live_events, new_turn, post_turn, post_turns, running, stored, stream
from tests.fake_openai import FakeOpenAI
from tests.messages import assert_error, new_id
from tests.services import KEY, Service, free_port, postmaster, receive, wait_for
from tests.test_server import request_of, status_of
from tests.test_silence import LONGEST, listen


@pytest.fixture(scope="module")
def other_chat(chat_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A third instance, of two workers."""
    with running("chat", tmp_path_factory.mktemp("chat"), **(chat_settings | {"OPENAI_TIMEOUT": 120})) as service:
        yield service


def waiting(persistence: Service, turn: dict[str, Any]) -> int:
    """Return how many requests have looked for the turn's reply, as those do that wait for it."""
    path = f"/messages/{reply_id(turn['message_id'])}"
    lines = [json.loads(line) for line in persistence.text().splitlines() if path in line]
    return len({line["request_id"] for line in lines if line["method"] == "GET"})


@pytest.mark.parametrize("ways", [[False], [True], [False, True]], ids=["whole", "streamed", "mixed"])
def test_twenty_at_once_make_one_call(
    patient_chat: Service, other_chat: Service, model: FakeOpenAI, persistence: Service, ways: list[bool]
) -> None:
    turn = new_turn("fault: count")
    turns = [turn | {"stream": ways[number // 2 % len(ways)]} for number in range(20)]
    model.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        responses = pool.submit(post_turns, [patient_chat, other_chat] * 10, turns)
        wait_for(lambda: waiting(persistence, turn) >= 19, 30)
        model.may_answer.set()
        answers = list(map(answer_of, responses.result()))
    assert answers == [stored(persistence, turn)] * 20
    assert len(model.requests) == 1
    deltas = sorted(response.text.count("event: delta\n") for response in responses.result())
    assert deltas[-2:] in ([0, 0], [1, 1], [1, 3])  # those that waited have the reply in one piece


@pytest.mark.parametrize("streamed", [False, True])
def test_a_repeat_after_hanging_up_makes_no_call(
    patient_chat: Service, other_chat: Service, model: FakeOpenAI, persistence: Service, streamed: bool
) -> None:
    turn = new_turn("fault: steps 1")
    if streamed:
        with stream(patient_chat, turn) as response:
            next(live_events(response))
    else:
        with pytest.raises(requests.Timeout):
            post_turn(patient_chat, turn, 1)
    with ThreadPoolExecutor() as pool:
        repeat = pool.submit(post_turn, other_chat, turn)
        wait_for(lambda: waiting(persistence, turn))
        model.steps.release()
        assert answer_of(repeat.result()) == stored(persistence, turn)
    assert len(model.requests) == 1


def test_turns_of_other_messages_do_not_wait(patient_chat: Service, other_chat: Service, model: FakeOpenAI) -> None:
    turn = new_turn("fault: steps 1")
    with stream(patient_chat, turn) as response:
        for chat in (patient_chat, other_chat):
            assert chat.post("/chat", json=new_turn("hello", chat_id=turn["chat_id"])).status_code == 200
        model.steps.release()
        assert list(live_events(response))[-1][0] == "reply"


def test_where_the_first_fails_a_waiting_one_asks(
    chat: Service, patient_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    late = [
        "break",
        'data {"error":{"code":1}}',
        "wait",
        "finish stop",
        "finish content_filter",
        "finish tool_calls",
        "flood",
        "say half",
    ]
    turns = [new_turn(f"fault: hold, {fault}") for fault in late]
    with ThreadPoolExecutor() as pool:
        firsts = pool.submit(post_turns, [chat] * len(turns), turns)
        wait_for(lambda: len(model.requests) == len(turns))
        repeats = pool.submit(post_turns, [patient_chat] * len(turns), turns)
        wait_for(lambda: all(waiting(persistence, turn) for turn in turns))
        model.is_well = True
        model.steps.release(len(turns))
        codes = [error_of(response)["code"] for response in firsts.result()]
        answers = list(map(answer_of, repeats.result()))
    assert codes == [504 if fault == "wait" else 502 for fault in late]
    assert answers == [stored(persistence, turn) for turn in turns]
    assert len(model.requests) == 2 * len(turns)


@pytest.mark.slow
def test_a_long_turn_is_not_taken_over_and_a_waiting_stream_gets_its_pings(
    patient_chat: Service, other_chat: Service, model: FakeOpenAI, persistence: Service
) -> None:
    turn = new_turn("fault: wait 75, say at last, finish stop")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post_turn, patient_chat, turn)
        wait_for(lambda: model.requests)
        repeat, gaps = listen(other_chat.url, turn)
        assert answer_of(first.result()) == answer_of(repeat) == stored(persistence, turn)
    assert max(gaps) < LONGEST
    assert len(model.requests) == 1


@pytest.mark.slow
def test_a_turn_whose_process_is_killed_is_taken_over_within_thirty_seconds(
    chat_settings: dict[str, Any], patient_chat: Service, model: FakeOpenAI, persistence: Service, folder: Path
) -> None:
    turn = new_turn("fault: hold, finish stop")
    with running("chat", folder, **chat_settings) as doomed, ThreadPoolExecutor() as pool:
        first = pool.submit(post_turn, doomed, turn)
        wait_for(lambda: model.requests)
        chats.kill(doomed)
        assert isinstance(first.exception(), requests.RequestException)
    model.is_well = True
    began = time.monotonic()
    assert answer_of(post_turn(patient_chat, turn)) == stored(persistence, turn)
    assert time.monotonic() - began < 32


@pytest.mark.slow
def test_a_worker_that_was_stopped_and_goes_on_gets_the_same_reply(
    chat_settings: dict[str, Any], patient_chat: Service, model: FakeOpenAI, persistence: Service, folder: Path
) -> None:
    turn = new_turn("fault: hold, say too late, finish stop")
    own = {"OPENAI_TIMEOUT": 120, "WEB_CONCURRENCY": 1}
    with running("chat", folder, **(chat_settings | own)) as chat, ThreadPoolExecutor() as pool:
        first = pool.submit(post_turn, chat, turn)
        wait_for(lambda: model.requests)
        worker, _master = stopped = chats.processes(chat)
        for process in reversed(stopped):  # as a machine that is put to sleep
            process.suspend()
        end = time.monotonic() + 40
        model.is_well = True
        try:
            answer = answer_of(post_turn(patient_chat, turn))
            time.sleep(end - time.monotonic())
            worker.resume()
            model.steps.release()
            assert answer_of(first.result()) == answer == stored(persistence, turn)
        finally:
            for process in stopped:
                process.resume()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["persistence", "database", "crashed database"])
def test_a_repeat_waits_on_through_a_restart(
    what: str, make_database: Callable[[], str], chat_settings: dict[str, Any], model: FakeOpenAI, folder: Path
) -> None:
    turn = new_turn("fault: hold, say at last, finish stop")
    settings: dict[str, Any] = {"API_KEY": KEY, "PORT": free_port(), "DATA_DIR": folder / "data"}
    if what == "persistence":
        settings["DATABASE_URL"] = make_database()
    own = chat_settings | {"API_BASE_URL": f"http://127.0.0.1:{settings['PORT']}", "OPENAI_TIMEOUT": 120}
    with contextlib.ExitStack() as stack:
        persistence = stack.enter_context(running("persistence", folder, **settings))
        first_chat, other_chat = [stack.enter_context(running("chat", folder, **own)) for _ in range(2)]
        pool = stack.enter_context(ThreadPoolExecutor())
        first = pool.submit(post_turn, first_chat, turn)
        wait_for(lambda: model.requests)
        repeat = pool.submit(post_turn, other_chat, turn | {"stream": True})
        wait_for(lambda: waiting(persistence, turn))
        if what == "persistence":
            persistence.stop()
            persistence = stack.enter_context(running("persistence", folder, **settings))
        else:
            database = postmaster(folder / "data")
            database.send_signal(signal.SIGINT if what == "database" else signal.SIGKILL)
            wait_for(lambda: not database.is_running())
            wait_for(persistence.is_up)
        model.steps.release(2)
        assert answer_of(first.result()) == answer_of(repeat.result()) == stored(persistence, turn)
    assert len(model.requests) == 1 or what == "crashed database"


def test_turns_that_come_together_are_marked_in_one_call(
    patient_chat: Service, persistence: Service, model: FakeOpenAI
) -> None:
    calls = persistence.text().count('"/turns/"')
    (worker,) = map(psutil.Process, patient_chat.workers())
    with contextlib.ExitStack() as stack:
        worker.suspend()  # so that what comes now is there at once
        connections = [stack.enter_context(patient_chat.connect()) for _ in range(20)]
        for connection in connections:
            connection.sendall(request_of("/chat", json.dumps(new_turn("hello")).encode()))
        worker.resume()
        assert [status_of(receive(connection)) for connection in connections] == [200] * 20
    assert persistence.text().count('"/turns/"') - calls < 10  # two, and what renews the marks of other tests


def take(persistence: Service, worker_id: str, *message_ids: str) -> list[str]:
    response = persistence.request("PUT", "/turns/", json={"worker_id": worker_id, "message_ids": message_ids})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["worker_id"] == worker_id
    return sorted(answer["message_ids"])


def age(database_url: str, message_id: str, seconds: int) -> None:
    statement = "UPDATE turns SET renewed_at = clock_timestamp() - make_interval(secs => %s) WHERE message_id = %s"
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute(statement, (seconds, message_id)).rowcount == 1


def test_a_mark_is_its_workers_until_it_is_given_back(persistence: Service) -> None:
    worker, other, first, second = (new_id() for _ in range(4))
    assert take(persistence, worker, first) == [first]
    assert take(persistence, worker, first) == [first]
    assert take(persistence, other, first, second) == [second]
    for giver, taken in ((other, []), (worker, [first])):
        path, params = f"/turns/{first}", {"worker_id": giver}
        assert persistence.request("DELETE", path, params=params).status_code == 204
        assert take(persistence, other, first) == taken


def test_a_mark_that_is_not_renewed_is_free_after_twenty_seconds(persistence: Service, database_url: str) -> None:
    worker, other, message_id = (new_id() for _ in range(3))
    take(persistence, worker, message_id)
    age(database_url, message_id, 15)
    assert take(persistence, other, message_id) == []
    age(database_url, message_id, 15)
    take(persistence, worker, message_id)
    age(database_url, message_id, 15)
    assert take(persistence, other, message_id) == []
    age(database_url, message_id, 21)
    assert take(persistence, other, message_id) == [message_id]
    assert take(persistence, worker, message_id) == []


def test_old_marks_are_cleared_in_passing(persistence: Service, database_url: str) -> None:
    worker, message_id = new_id(), new_id()
    take(persistence, worker, message_id)
    age(database_url, message_id, 3600)
    take(persistence, worker, new_id())
    with psycopg.connect(database_url) as connection:
        assert not connection.execute("SELECT FROM turns WHERE message_id = %s", (message_id,)).fetchall()


@pytest.mark.parametrize(
    ("field", "value"),
    [("worker_id", "x"), ("message_ids", ["x"]), ("message_ids", None), ("seconds", 5)],
)
def test_wrong_marks_are_named(persistence: Service, field: str, value: Any) -> None:
    body = {"worker_id": new_id(), "message_ids": [new_id()]} | {field: value}
    assert_error(persistence.request("PUT", "/turns/", json=body), 422, field)


def test_marks_need_a_key_and_a_worker(persistence: Service) -> None:
    path = f"/turns/{new_id()}"
    assert_error(persistence.request("DELETE", path), 422, "worker_id")
    for method, url in (("PUT", "/turns/"), ("DELETE", path)):
        assert_error(persistence.request(method, url, headers={"x-api-key": None}), 401)
