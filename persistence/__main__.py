"""python -m persistence: settings, database, then gunicorn."""

import contextlib
import logging
import os
import secrets
import sys
from dataclasses import replace

from persistence import settings as service_settings
from persistence.embedded import EmbeddedPostgres
from persistence.settings import API_KEY_FILE, Settings
from persistence.web import env, logs, process
from persistence.web.env import SettingsError
from persistence.web.port import check_port

log = logging.getLogger(__name__)


def main() -> None:
    """Run the persistence service until SIGTERM or Ctrl-C. Exits with one line where it can't start."""
    process.exit_on_signals()
    logs.configure("persistence")
    try:
        _run()
    except SettingsError as exc:
        sys.exit(f"persistence: {exc}")


def _run() -> None:
    if "API_KEY" not in os.environ and not env.text("API_KEY_FILE", ""):
        make_api_key()
    settings = service_settings.load()
    check_port(settings.host, settings.port)
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it at import, and fails where it is no number
    from persistence.app import create_app
    from persistence.web import server

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
            threads=settings.threads,
            on_worker_exit=lambda app: app.extensions["database"].close(),
        )
    finally:
        if postgres is not None:
            postgres.stop()


def with_present_keys(settings: Settings) -> Settings:
    """Give the settings with the keys that are in the file now, or as they are where it can't be used.

    Each worker asks at its start, so SIGHUP, at which gunicorn replaces its workers, takes up new keys with no outage.
    """
    try:
        return replace(settings, api_keys=service_settings.load_keys())
    except SettingsError as exc:
        log.error("The API keys stay as they were: %s", exc)
        return settings


def make_api_key() -> None:
    """Make a random key in the default file, where that is missing. Raises SettingsError where it can't be written."""
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
