"""Who talks while things break, and repeats each request until it is acknowledged; and the look at what is kept."""

import math
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, NamedTuple

import requests

from tests.chats import answer_of, events_of, new_turn
from tests.fake_openai import FakeOpenAI
from tests.messages import new_id, new_message
from tests.services import KEY

Message = dict[str, Any]

PATIENCE = (3, 8, 20)  # seconds without a byte, after which a caller hangs up
PASSING = ("502", "503", "504")  # statuses after which a repeat may be acknowledged
RECOVERY_SECONDS = 90  # after the end, for what is under way
# the model takes its time, so that things can break meanwhile, and gives another reply each time
TURN = "fault: wait {:.2f}, say This is , wait {:.2f}, count #{}"


class Acknowledged(NamedTuple):
    """A message as it was answered, the time from its first sending to that, and the id of what it replies to."""

    message: Message
    began: float
    ended: float
    question: str | None = None


class Verdict(NamedTuple):
    """Ids of messages: as they were acknowledged; not there, or changed; there without a word; before their turn."""

    kept: list[str]
    missing: list[str]
    double: list[str]
    out_of_order: list[str]


def judge(acknowledged: Sequence[Acknowledged], stored: Iterable[Message]) -> Verdict:
    """Compare what was acknowledged with what is stored, in the order of the store.

    In a chat, what was sent after another message was acknowledged comes after it, and a reply after its question.
    """
    known = {item.message["message_id"]: item for item in acknowledged}
    found: dict[str, Message] = {}
    double, out_of_order = [], []
    latest: dict[str, float] = defaultdict(float)  # of a chat's messages so far, the time at which the last was sent
    for message in stored:
        message_id, chat_id = message["message_id"], message["chat_id"]
        item = known.get(message_id)
        if item is None or message_id in found:
            double.append(message_id)
            continue
        if item.ended < latest[chat_id] or (item.question and item.question not in found):
            out_of_order.append(message_id)
        found[message_id] = message
        latest[chat_id] = max(latest[chat_id], item.began)
    kept = [message_id for message_id, item in known.items() if found.get(message_id) == item.message]
    return Verdict(kept, [message_id for message_id in known if message_id not in set(kept)], double, out_of_order)


def turns_of(model: FakeOpenAI) -> Counter[str]:
    """Return how often the model was called for each turn."""
    return Counter(request["messages"][-1]["content"].partition("#")[2] for request in model.requests)


class Caller:
    """Stores messages and takes turns, one after another, until its `end`; sends each until it is acknowledged.

    `urls` are of the persistence and the chat service; `chat_id` may be that of other callers, too.
    """

    def __init__(self, urls: tuple[str, str], chat_id: str, seed: str, end: float = math.inf) -> None:
        self.urls, self.chat_id, self.end = urls, chat_id, end
        self.give_up = threading.Event()
        self.random = random.Random(seed)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["x-api-key"] = KEY
        self.answers: Counter[str] = Counter()
        self.acknowledged: list[Acknowledged] = []
        self.repeats = 0
        self.unanswered: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self.end:
            self.speak()

    def speak(self) -> None:
        message_id, began, chance = new_id(), time.monotonic(), self.random.random
        body = {"message_id": message_id, "chat_id": self.chat_id}
        if chance() < 0.5:
            body = new_message(content=f"message {message_id}", **body)
        else:
            content = TURN.format(chance() / 2, chance() / 2, message_id)
            body = new_turn(content, stream=chance() < 0.5, **body)
        while not (messages := self.send(body)):
            if self.give_up.wait(self.random.uniform(0.1, 1.0)):
                self.unanswered.append(message_id)
                return
            self.repeats += 1
        assert messages[0]["message_id"] == message_id
        self.acknowledged.append(Acknowledged(messages[0], began, time.monotonic()))
        for reply in messages[1:]:
            assert re.fullmatch(r"This is reply number \d+", reply["content"]), reply
            self.acknowledged.append(Acknowledged(reply, began, time.monotonic(), message_id))

    def send(self, body: dict[str, Any]) -> list[Message]:
        """Return the messages that the answer acknowledges."""
        url = f"{self.urls[0]}/messages/" if "role" in body else f"{self.urls[1]}/chat"
        try:
            headers = {"X-Request-ID": body["message_id"]}  # to be found in the logs
            response = self.session.post(url, json=body, headers=headers, timeout=(2, self.random.choice(PATIENCE)))
        except requests.RequestException as exc:
            self.answers["timed out" if "timed out" in str(exc) else "cut off"] += 1
            self.session.close()  # the next connection is to another instance
            return []
        status, messages = read(response)
        self.answers[status] += 1
        return messages


def read(response: requests.Response) -> tuple[str, list[Message]]:
    """Return an answer's status, and the messages that it acknowledges."""
    if response.status_code >= 400:
        return str(response.status_code), []
    if response.headers["Content-Type"].startswith("text/event-stream"):
        name, data = events_of(response.content.decode())[-1]
        if name == "error":
            return str(data["code"]), []
    is_turn = response.status_code == 200 and response.request.path_url == "/chat"
    return str(response.status_code), answer_of(response) if is_turn else [response.json()]


@contextmanager
def talking(callers: Sequence[Caller]) -> Iterator[None]:
    """Let them talk while the block runs, and then wait for their last answers."""
    with ThreadPoolExecutor(len(callers)) as pool:
        talks = [pool.submit(caller.run) for caller in callers]
        try:
            yield
        finally:
            for caller in callers:
                caller.end = 0
            wait(talks, RECOVERY_SECONDS)
            for caller in callers:
                caller.give_up.set()
            for talk in talks:
                talk.result()
