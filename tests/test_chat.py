import uuid

from tests.fake_openai import FakeOpenAI
from tests.services import Service


def test_a_turn_stores_both_sides(chat: Service, persistence: Service) -> None:
    response = chat.post("/chat", json={"content": "hello"})
    assert response.status_code == 200
    turn = response.json()
    assert (turn["message"]["content"], turn["message"]["role"]) == ("hello", "human")
    assert (turn["reply"]["content"], turn["reply"]["role"]) == ("reply to hello", "ai")
    stored = persistence.get("/messages/", params={"chat_id": turn["reply"]["chat_id"]}).json()
    assert stored == [turn["message"], turn["reply"]]


def test_the_model_is_given_what_was_said_before(chat: Service, model: FakeOpenAI) -> None:
    chat_id = str(uuid.uuid4())
    for content in ("one", "two", "three"):
        chat.post("/chat", json={"content": content, "chat_id": chat_id})
    said = [(message["role"], message["content"]) for message in model.requests[-1]["messages"][1:]]
    assert said == [
        ("user", "one"),
        ("assistant", "reply to one"),
        ("user", "two"),
        ("assistant", "reply to two"),
        ("user", "three"),
    ]
