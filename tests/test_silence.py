"""Models that think for long: no stream is silent for longer than 15 seconds, and no call is made twice."""

import itertools
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from tests.chats import answer_of, error_of, events_of, new_turn, post_turn, post_turns, running, stored
from tests.fake_openai import FakeOpenAI
from tests.services import KEY, ROOT, Service, free_port, wait_for

pytestmark = pytest.mark.slow

LONGEST = 17  # the contract has 15; a loaded machine may be late
SILENCES = {
    "before the headers": "wait 40, say done, finish stop",
    "after the headers": "head, wait 40, say done, finish stop",
    "after an empty delta": "role, wait 40, say done, finish stop",
    "under comments": "comments 40, say done, finish stop",
    "under thoughts": "thoughts 40, say done, finish stop",
    "in the middle": "say do, wait 40, say ne, finish stop",
    "at the end": "say done, wait 40, finish stop",
}
BEGINS_LATE = ("before the headers", "after the headers", "under comments")
NGINX = """
daemon off; master_process off; pid nginx.pid;
events {}
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  %s
}
"""


class Heard(NamedTuple):
    """What came of a streamed turn, and the seconds before its head and before each piece of its body."""

    response: requests.Response
    gaps: list[float]


def listen(url: str, turn: dict[str, Any]) -> Heard:
    """Stream a turn, with an ear on its silences."""
    times = [time.monotonic()]
    response = requests.post(
        f"{url}/chat", json=turn | {"stream": True}, headers={"x-api-key": KEY}, timeout=60, stream=True
    )
    body = bytearray()
    for data in response.iter_content(None):
        times.append(time.monotonic())
        body += data
    response._content = bytes(body)  # as if it had been read at once
    return Heard(response, [after - before for before, after in itertools.pairwise(times)])


@pytest.fixture(scope="module")
def heard(patient_chat: Service, model_server: FakeOpenAI) -> dict[str, Heard]:
    """Plays every silence, all at the same time."""
    model_server.reset()
    with ThreadPoolExecutor(len(SILENCES)) as pool:
        turns = [new_turn(f"fault: {steps}") for steps in SILENCES.values()]
        heard = list(pool.map(listen, [patient_chat.url] * len(turns), turns))
    assert len(model_server.requests) == len(turns)
    return dict(zip(SILENCES, heard, strict=True))


@pytest.mark.parametrize("name", SILENCES)
def test_a_stream_is_never_silent_for_long(heard: dict[str, Heard], persistence: Service, name: str) -> None:
    response, gaps = heard[name]
    assert max(gaps) < LONGEST
    assert (gaps[0] > 8) == (name in BEGINS_LATE)
    events = events_of(response.text)
    assert [events[0][0], events[-1][0]] == ["message", "reply"]
    assert "".join(data["content"] for name, data in events if name == "delta") == "done"
    assert [events[0][1], events[-1][1]] == stored(persistence, events[0][1])


@pytest.mark.parametrize(("seconds", "status"), [(5, 502), (14, 200)])
def test_what_fails_within_ten_seconds_has_its_plain_status(
    patient_chat: Service, model: FakeOpenAI, seconds: int, status: int
) -> None:
    response = listen(patient_chat.url, new_turn(f"fault: wait {seconds}, break")).response
    assert response.status_code == status
    assert error_of(response)["code"] == 502
    assert len(model.requests) == 1


def test_a_thought_is_a_sign_of_life(chat: Service) -> None:
    turn = new_turn("fault: thoughts 8, say at last, finish stop")
    assert answer_of(post_turn(chat, turn))[1]["content"] == "at last"


def test_two_hundred_thinking_streams_leave_the_others_alone(patient_chat: Service, model: FakeOpenAI) -> None:
    turns = [new_turn("fault: wait 20, say done, finish stop", stream=True) for _ in range(200)]
    with ThreadPoolExecutor() as pool:
        thinking = pool.submit(post_turns, [patient_chat] * 200, turns)
        wait_for(lambda: len(model.requests) == 200)
        began = time.monotonic()
        for number in range(10):
            assert patient_chat.get("/health").status_code == 200
            assert answer_of(patient_chat.post("/chat", json=new_turn("quick", stream=number % 2 == 0)))
        assert time.monotonic() - began < 5
        assert not thinking.done()
        assert all(answer_of(response)[1]["content"] == "done" for response in thinking.result())
    assert len(model.requests) == 210


@pytest.fixture
def paced_model() -> Iterator[str]:
    """A model for crowds: a second to the first piece, a tenth of one to each of the others."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))  # many a start allows 1,024
    port = free_port()
    command = [sys.executable, "-m", "tests.paced_model", str(port), "1", "0.1", "20"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        url = f"http://127.0.0.1:{port}/v1"
        wait_for(lambda: requests.post(url, data=b"{}", timeout=5).ok)
        yield url
        process.terminate()
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


def test_a_thousand_streams_go_through_one_worker(paced_model: str, persistence: Service, folder: Path) -> None:
    turns = [new_turn(f"question {number}", stream=True) for number in range(1000)]
    settings = {"API_BASE_URL": persistence.url, "OPENAI_BASE_URL": paced_model, "WEB_CONCURRENCY": 1}
    with running("chat", folder, **settings) as chat:
        responses = post_turns([chat] * len(turns), turns)
    for turn, response in zip(turns, responses, strict=True):
        question, reply = answer_of(response)
        assert turn.items() - {("stream", True)} <= question.items()
        assert reply["chat_id"] == turn["chat_id"]
        assert reply["content"] == "".join(f"word{number} " for number in range(20))


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx, from Debian's package of this name")
def test_a_model_may_think_for_ninety_seconds_behind_nginx(
    patient_chat: Service, model: FakeOpenAI, folder: Path
) -> None:
    turn = new_turn("fault: wait 90, say at last, finish stop")
    port = free_port()
    shown = re.search(r"```nginx\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    server = shown[1].replace("8080", f"127.0.0.1:{port}").replace(":8100", f":{patient_chat.port}")
    (folder / "nginx.conf").write_text(NGINX % server)
    command = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "nginx.log"]
    with subprocess.Popen(command) as nginx:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: requests.get(f"{url}/health", timeout=5).ok)
        response, gaps = listen(url, turn)
        nginx.terminate()
    assert answer_of(response)[1]["content"] == "at last"
    assert max(gaps) < LONGEST
    assert len(model.requests) == 1
