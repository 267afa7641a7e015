"""python -m persistence: settings, database, then gunicorn."""
# ruff: noqa: E402  # what must come before anything else is imported

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until gunicorn handles them

from gevent import monkey

monkey.patch_all()

import atexit
import logging
import os
import secrets
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from flask import Flask

from persistence.embedded import EmbeddedPostgres
from persistence.settings import API_KEY_FILE, Settings, read_keys
from persistence.web import env, logs
from persistence.web.env import SettingsError

CONNECTIONS = 4000  # of clients, a worker
log = logging.getLogger(__name__)


def main() -> None:
    """Run the persistence service until SIGTERM or Ctrl-C. Exits with one line if it can't start."""
    logs.configure("persistence")
    try:
        if "API_KEY" not in os.environ and not env.text("API_KEY_FILE"):
            make_api_key()
        serve(Settings())
    except SettingsError as exc:
        sys.exit(f"persistence: {exc}")


def serve(settings: Settings) -> None:
    """Serve until a signal says stop. Raises SettingsError if port or database can't be used."""
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it at import, and fails if it is no number
    from persistence.app import create_app
    from persistence.web import server

    server.check_port(settings)
    with ExitStack() as stack:
        conninfo, database = settings.database_url, "that of DATABASE_URL"
        if conninfo is None:
            postgres = EmbeddedPostgres(settings.data_dir)
            stack.callback(postgres.stop)
            conninfo, database = postgres.start(), f"a PostgreSQL of its own, in {settings.data_dir}"
        sys.stderr.write(f"persistence: http://{settings.address}/docs; the database is {database}\n")

        def create_worker() -> Flask:
            app = create_app(with_present_keys(settings), conninfo)
            atexit.register(app.extensions["database"].close)  # of the worker, which this runs in
            return app

        server.serve(create_worker, settings, CONNECTIONS)


def with_present_keys(settings: Settings) -> Settings:
    """Return the settings with the keys that are in the file now, or as they are if it can't be used.

    Each worker asks at its start, so SIGHUP, at which gunicorn replaces its workers, takes up new keys with no outage.
    """
    try:
        return replace(settings, api_keys=read_keys())
    except SettingsError as exc:
        log.error("The API keys stay as they were: %s", exc)
        return settings


def make_api_key() -> None:
    """Make a random key in the default file, if that is missing. Raises SettingsError if it can't be written."""
    try:
        API_KEY_FILE.parent.mkdir(mode=0o700, exist_ok=True)
        with open(API_KEY_FILE, "x", opener=partial(os.open, mode=0o600)) as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
        sys.stderr.write(f"persistence: made an API key in {API_KEY_FILE}\n")
    except FileExistsError:
        pass
    except OSError as exc:
        raise SettingsError(f"API_KEY: can't make {API_KEY_FILE}: {exc.strerror}") from None


if __name__ == "__main__":
    main()
