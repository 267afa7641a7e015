import importlib
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.services import KEY, Service


def generate(service: Service, folder: Path, name: str) -> None:
    """Make a Python client from the service's OpenAPI document."""
    command = [Path(sys.executable).with_name("openapi-python-client"), "generate", "--meta", "none"]
    command += ["--url", f"{service.url}/openapi.json", "--output-path", folder / name]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_client_generated_for_persistence_works(
    persistence: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(persistence, folder, "persistence_client")
    monkeypatch.syspath_prepend(folder)
    package: Any = importlib.import_module("persistence_client")
    models: Any = importlib.import_module("persistence_client.models")
    create: Any = importlib.import_module("persistence_client.api.messages.create_message")
    listing: Any = importlib.import_module("persistence_client.api.messages.list_messages")
    chat_id = uuid.uuid4()
    with package.AuthenticatedClient(persistence.url, token=KEY, prefix="", auth_header_name="x-api-key") as client:
        new = models.NewMessage(chat_id=chat_id, content="hello", role=models.NewMessageRole.HUMAN)
        stored = create.sync(client=client, body=new)
        assert isinstance(stored, models.Message), stored
        assert stored.content == "hello"
        assert listing.sync(client=client, chat_id=chat_id, limit=10) == [stored]


@pytest.mark.slow
def test_a_client_generated_for_chat_works(chat: Service, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(chat, folder, "chat_client")
    monkeypatch.syspath_prepend(folder)
    package: Any = importlib.import_module("chat_client")
    models: Any = importlib.import_module("chat_client.models")
    take_turn: Any = importlib.import_module("chat_client.api.chat.take_turn")
    with package.AuthenticatedClient(chat.url, token=KEY, prefix="", auth_header_name="x-api-key") as client:
        answer = take_turn.sync(client=client, body=models.Turn(content="hello"))
        assert answer.reply.content == "reply to hello"
