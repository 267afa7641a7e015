"""A stand-in for the model: a small server that speaks OpenAI's Chat Completions, for trying out."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator

from flask import Flask, Response, request
from werkzeug.serving import make_server

WORD_SECONDS = 0.05

app = Flask(__name__, static_folder=None)


@app.post("/v1/chat/completions")
def complete() -> Response:
    """Say that this is a stand-in, how many messages it was given, and what the last one was, word by word."""
    messages = request.get_json()["messages"]
    text = (
        f"I am only a stand-in for a model. I was given {len(messages)} messages, "
        f"of which the last says: {messages[-1]['content']}"
    )
    return Response(_events(text), mimetype="text/event-stream")


def _events(text: str) -> Iterator[str]:
    deltas: list[dict[str, str]] = [{"content": word} for word in re.split(r"(?= )", text)]
    for delta in [*deltas, {}]:
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield f"data: {json.dumps({'id': 'demo', 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        time.sleep(WORD_SECONDS)
    yield "data: [DONE]\n\n"


def start() -> str:
    """Start the server in threads of this process, on a free port of the loopback address, and return its base URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, name="demo-model", daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/v1"
