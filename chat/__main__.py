"""python -m chat: the chat service under gunicorn, or, with flags, the whole system on one machine."""
# ruff: noqa: E402  # what must come before anything else is imported

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the start without a traceback

import argparse
import os
import sys

from chat import settings as service_settings
from chat.settings import Settings
from persistence.web.env import SettingsError


def main() -> None:
    """Run until SIGTERM or Ctrl-C. Exits with one line if it can't start."""
    parser = argparse.ArgumentParser(prog="python -m chat", description="The chat service.")
    parser.add_argument(
        "--with-persistence", action="store_true", help="run the persistence service and its database too"
    )
    parser.add_argument("--demo-model", action="store_true", help="run a stand-in for the model too")
    flags = parser.parse_args()
    try:
        settings = service_settings.load()
        if flags.with_persistence or flags.demo_model:
            from chat import launcher

            sys.exit(launcher.run(settings, with_persistence=flags.with_persistence, demo_model=flags.demo_model))
        serve(settings)
    except SettingsError as exc:
        sys.exit(f"chat: {exc}")


def serve(settings: Settings) -> None:
    """Serve until a signal says stop. Raises SettingsError if the port is taken."""
    from gevent import monkey

    monkey.patch_all()  # before anything else is imported
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it at import, and fails if it is no number
    from chat.app import create_app
    from persistence.web import logs, server

    logs.configure("chat")
    server.check_port(settings.host, settings.port)
    sys.stderr.write(f"chat: http://{settings.host}:{settings.port}/docs; the model is {settings.model_and_host}\n")
    server.serve(
        lambda: create_app(settings),
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        connections=settings.max_turns + 1000,
        graceful_timeout=settings.graceful_timeout,
    )


if __name__ == "__main__":
    main()
