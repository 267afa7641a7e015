"""python -m chat: the chat service under gunicorn, or, with flags, the whole system on one machine."""

import argparse
import os
import sys

from chat import launcher
from chat import settings as service_settings
from persistence.web import logs, process
from persistence.web.env import SettingsError
from persistence.web.port import check_port


def main() -> None:
    """Run until SIGTERM or Ctrl-C. Exits with one line where it can't start."""
    parser = argparse.ArgumentParser(prog="python -m chat", description="The chat service.")
    parser.add_argument(
        "--with-persistence", action="store_true", help="run the persistence service and its database too"
    )
    parser.add_argument("--demo-model", action="store_true", help="run a stand-in for the model too")
    flags = parser.parse_args()
    process.exit_on_signals()
    try:
        settings = service_settings.load()
        if flags.with_persistence or flags.demo_model:
            sys.exit(launcher.run(settings, with_persistence=flags.with_persistence, demo_model=flags.demo_model))
        os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn reads it at import, and fails where it is no number
        from chat.app import create_app
        from persistence.web import server

        logs.configure("chat")
        check_port(settings.host, settings.port)
        sys.stderr.write(f"chat: http://{settings.host}:{settings.port}/docs; the model is {settings.model_and_host}\n")
        server.serve(
            lambda: create_app(settings),
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            threads=settings.threads,
        )
    except SettingsError as exc:
        sys.exit(f"chat: {exc}")


if __name__ == "__main__":
    main()
