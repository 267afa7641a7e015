"""python -m chat: the chat service under gunicorn, or, with flags, the whole system on one machine."""
# ruff: noqa: E402  # what must come before anything else is imported

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until gunicorn or the launcher looks

import argparse
import os
import sys
from urllib.parse import urlsplit

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
        settings = Settings()
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
    server.check_port(settings)
    host = urlsplit(settings.openai_base_url).hostname  # the whole URL could hold a password
    key = ", which needs a key in secrets/openai_api_key.txt or OPENAI_API_KEY" if settings.lacks_key else ""
    sys.stderr.write(f"chat: http://{settings.address}/docs; the model is {settings.openai_model} at {host}{key}\n")
    server.serve(lambda: create_app(settings), settings, settings.max_turns + 1000)


if __name__ == "__main__":
    main()
