"""A real PostgreSQL, the services as real processes, and a model that is a real HTTP server."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg import sql
from psycopg.conninfo import make_conninfo

from persistence.app import create_app
from persistence.embedded import EmbeddedPostgres
from persistence.settings import Settings
from tests.chats import RunChat, running
from tests.fake_openai import FakeOpenAI
from tests.services import KEY, OTHER_KEY, Service, wait_for


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server: the one of TEST_DATABASE_URL, or one of our own."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("data"))
    yield postgres.start()
    postgres.stop()


@pytest.fixture(scope="session")
def make_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Make an empty database, and return its connection string."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{uuid.uuid4().hex}")
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(names[-1])))
        return make_conninfo(server_url, dbname=names[-1])

    yield make
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in names:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def database_url(make_database: Callable[[], str]) -> str:
    """The database of the session's persistence service."""
    return make_database()


@pytest.fixture(scope="session")
def persistence(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A persistence service that all tests share; none may break it."""
    settings = {"DATABASE_URL": database_url, "API_KEY": f"{KEY}\n{OTHER_KEY}"}
    with running("persistence", tmp_path_factory.mktemp("persistence"), **settings) as service:
        yield service
    assert '"status": 500' not in service.text()


@pytest.fixture(scope="session")
def make_client() -> Iterator[Callable[[str], FlaskClient]]:
    """Make the persistence service's app in this process, over a database, and return a client: no server, no HTTP."""

    def make(database_url: str) -> FlaskClient:
        app = create_app(Settings(api_keys=(KEY.encode(),)), database_url)
        stack.callback(app.extensions["database"].close)
        client = app.test_client()
        client.environ_base["HTTP_X_API_KEY"] = KEY
        wait_for(lambda: client.get("/ready").status_code == 200, 30, "the app")
        return client

    with ExitStack() as stack:
        yield make


@pytest.fixture(scope="session")
def client(make_client: Callable[[str], FlaskClient], database_url: str) -> FlaskClient:
    """A client of the app in this process, over the session's database."""
    return make_client(database_url)


@pytest.fixture(scope="session")
def model_server() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI()
    yield server
    server.stop()


@pytest.fixture
def model(model_server: FakeOpenAI) -> FakeOpenAI:
    """The model, behaving."""
    model_server.reset()
    return model_server


@pytest.fixture(scope="session")
def chat_settings(persistence: Service, model_server: FakeOpenAI) -> dict[str, Any]:
    """The settings of a chat service over the session's persistence service and model."""
    return {"API_BASE_URL": persistence.url, "OPENAI_BASE_URL": model_server.url, "OPENAI_TIMEOUT": "2"}


@pytest.fixture(scope="session")
def run_chat(chat_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunChat:
    """Run a chat service of one's own for as long as a block: of one worker, which waits long for the model."""
    settings = chat_settings | {"OPENAI_TIMEOUT": 120, "WEB_CONCURRENCY": 1}
    return lambda **own: running("chat", tmp_path_factory.mktemp("chat"), **(settings | own))


@pytest.fixture(scope="session")
def shared_chat(run_chat: RunChat) -> Iterator[Service]:
    with run_chat(OPENAI_TIMEOUT=2, WEB_CONCURRENCY=2) as service:
        yield service


@pytest.fixture(scope="session")
def patient_chat(run_chat: RunChat) -> Iterator[Service]:
    """A second instance of the chat service, which waits longer for the model."""
    with run_chat() as service:
        yield service


@pytest.fixture
def chat(shared_chat: Service, model: FakeOpenAI) -> Service:
    """A chat service that all tests share, over a model that behaves."""
    return shared_chat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the processes of one test."""
    return tmp_path


@pytest.fixture
def make_service(folder: Path) -> Iterator[Callable[..., Service]]:
    """Start services of one's own, to be spoiled."""
    with ExitStack() as stack:
        yield lambda module, *flags, **settings: stack.enter_context(running(module, folder, *flags, **settings))
