"""A stand-in for the model: a small server that speaks OpenAI's Chat Completions, for trying out and for tests."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD_SECONDS = 0.05


class DemoModelHandler(BaseHTTPRequestHandler):
    """Answers POST …/chat/completions, word by word where it is asked to stream."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a word leaves when it is there
    word_seconds = WORD_SECONDS

    def do_POST(self) -> None:
        """Say that this is a stand-in, how many messages it was given, and what the last one was."""
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        messages = request["messages"]
        text = (
            f"I am only a stand-in for a model. I was given {len(messages)} messages, "
            f"of which the last says: {messages[-1]['content']}"
        )
        self.reply(request, text.split(" "))

    def reply(self, request: dict[str, Any], words: list[str]) -> None:
        """Send `words`, with a space between them, whole or as a stream."""
        if not request.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.send_json({"id": "demo", "object": "chat.completion", "model": "demo", "choices": [choice]})
            return
        self.start_stream()
        self.send_chunk({"role": "assistant", "content": ""})
        for number, word in enumerate(words):
            self.send_chunk({"content": f" {word}" if number else word})
            time.sleep(self.word_seconds)
        self.send_chunk({}, finish_reason="stop")
        self.end_stream()

    def send_json(self, body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send a whole response."""
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def start_stream(self) -> None:
        """Begin a response of server-sent events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        """Send one piece, as OpenAI does."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.send_data(json.dumps({"id": "demo", "object": "chat.completion.chunk", "choices": [choice]}))

    def send_data(self, data: str) -> None:
        """Send one event."""
        self.send_piece(f"data: {data}\n\n".encode())

    def send_piece(self, piece: bytes) -> None:
        """Send bytes as one chunk of the body."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def end_stream(self) -> None:
        """End the response as OpenAI does."""
        self.send_data("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name that its base has
        """Say nothing: the chat service has a log."""


class DemoModelServer(ThreadingHTTPServer):
    """The server, in threads of this process; on a free port of the loopback address unless told otherwise."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, handler: type[DemoModelHandler] = DemoModelHandler, address: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        super().__init__(address, handler)
        threading.Thread(target=self.serve_forever, name="demo-model", daemon=True).start()

    @property
    def url(self) -> str:
        """The base URL that an OpenAI client is given."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up is no error."""
