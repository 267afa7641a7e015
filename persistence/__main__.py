"""python -m persistence: settings, database, then gunicorn."""
# ruff: noqa: E402  # what must come before anything else is imported

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the start without a traceback

from gevent import monkey

monkey.patch_all()

import contextlib
import logging
import os
import secrets
import sys
from dataclasses import replace

from persistence import settings as service_settings
from persistence.embedded import EmbeddedPostgres
from persistence.settings import API_KEY_FILE, Settings
from persistence.web import env, logs
from persistence.web.env import SettingsError

CONNECTIONS = 4000  # of clients, a worker
log = logging.getLogger(__name__)


def main() -> None:
    """Run the persistence service until SIGTERM or Ctrl-C. Exits with one line if it can't start."""
    stops: list[int] = []  # signals that came before gunicorn handles them
    for end_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(end_signal, lambda number, _frame: stops.append(number))
    logs.configure("persistence")
    try:
        _run(stops)
    except SettingsError as exc:
        sys.exit(0 if stops else f"persistence: {exc}")  # Ctrl-C reaches what starts the database, too


def _run(stops: list[int]) -> None:
    if "API_KEY" not in os.environ and not env.text("API_KEY_FILE"):
        make_api_key()
    settings = service_settings.load()
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it at import, and fails if it is no number
    from persistence.app import create_app
    from persistence.web import server

    server.check_port(settings.host, settings.port)
    postgres = None if settings.database_url else EmbeddedPostgres(settings.data_dir)
    try:
        conninfo = settings.database_url or (postgres.start() if postgres else "")
        database = (
            "that of DATABASE_URL" if settings.database_url else f"a PostgreSQL of its own, in {settings.data_dir}"
        )
        sys.stderr.write(f"persistence: http://{settings.host}:{settings.port}/docs; the database is {database}\n")
        server.serve(
            lambda: create_app(with_present_keys(settings), conninfo),
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            connections=CONNECTIONS,
            graceful_timeout=settings.graceful_timeout,
            when_ready=lambda: signal.raise_signal(signal.SIGTERM) if stops else None,
            on_worker_exit=lambda app: app.extensions["database"].close(),
        )
    finally:
        if postgres is not None:
            postgres.stop()


def with_present_keys(settings: Settings) -> Settings:
    """Return the settings with the keys that are in the file now, or as they are if it can't be used.

    Each worker asks at its start, so SIGHUP, at which gunicorn replaces its workers, takes up new keys with no outage.
    """
    try:
        return replace(settings, api_keys=service_settings.load_keys())
    except SettingsError as exc:
        log.error("The API keys stay as they were: %s", exc)
        return settings


def make_api_key() -> None:
    """Make a random key in the default file, if that is missing. Raises SettingsError if it can't be written."""
    if API_KEY_FILE.exists():
        return
    draft = API_KEY_FILE.with_suffix(f".{os.getpid()}")
    try:
        API_KEY_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        API_KEY_FILE.parent.chmod(0o700)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
        with contextlib.suppress(FileExistsError):  # another service was faster: its key counts
            os.link(draft, API_KEY_FILE)
            sys.stderr.write(f"persistence: made an API key in {API_KEY_FILE}\n")
        draft.unlink()
    except OSError as exc:
        raise SettingsError(f"API_KEY: can't make {API_KEY_FILE}: {exc.strerror}") from None


if __name__ == "__main__":
    main()
