"""A model on a real HTTP server, which fails in every way that a real one does. (Standard library: it runs anywhere.)

Where the last message is `fault: STEP, STEP ARGUMENT # anything`, it plays these steps, each a method below, until it
is told to be well; else it replies.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """A response begins with the first step that sends something, and ends properly unless a step broke it off."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a piece leaves when it is there
    server: "FakeOpenAI"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers.get("Authorization", ""))
        self.has_begun = False
        content = request["messages"][-1]["content"]
        if content.startswith("fault: ") and not self.server.is_well:
            for step in content.removeprefix("fault: ").partition(" #")[0].split(", "):
                name, _, argument = step.partition(" ")
                getattr(self, f"play_{name}")(argument)
        else:
            self.server.may_answer.wait(60)
            self.play_reply(self.server.text or f"reply to {content}")
        if self.has_begun:
            self.play_data("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

    def send_bytes(self, data: bytes) -> None:
        self.play_head()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def play_data(self, data: str) -> None:
        self.send_bytes(f"data: {data}\n\n".encode())

    def send_delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.play_data(json.dumps({"id": "fake", "object": "chat.completion.chunk", "choices": [choice]}))

    def send_json(self, body: dict[str, Any], status: int = 200, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def play_head(self, _argument: str = "") -> None:
        if not self.has_begun:
            self.has_begun = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

    def play_reply(self, text: str) -> None:
        self.play_role()
        for number, word in enumerate(text.split(" ")):
            self.send_delta({"content": f" {word}" if number else word})
        self.play_finish()

    def play_count(self, _argument: str) -> None:
        """Another reply each time."""
        self.server.may_answer.wait(60)
        with self.server.lock:
            self.server.replies += 1
            text = f"reply number {self.server.replies}"
        self.play_reply(text)

    def play_status(self, argument: str) -> None:
        """status CODE [RETRY-AFTER]"""
        status, _, retry_after = argument.partition(" ")
        headers = {"Retry-After": retry_after} if retry_after else {}
        self.send_json({"error": {"message": "secret details", "code": "some_code"}}, int(status), **headers)

    def play_json(self, _argument: str) -> None:
        self.send_json({"not": "a stream"})

    def play_role(self, _argument: str = "") -> None:
        self.send_delta({"role": "assistant", "content": ""})

    def play_say(self, text: str) -> None:
        self.send_delta({"content": text})

    def play_finish(self, reason: str = "stop") -> None:
        self.send_delta({}, reason)

    def play_wait(self, seconds: str) -> None:
        self.server.closing.wait(float(seconds or 60))

    def play_comments(self, seconds: str) -> None:
        for _ in range(int(4 * float(seconds))):
            self.send_bytes(b": still there\n\n")
            self.server.closing.wait(0.25)

    def play_thoughts(self, seconds: str) -> None:
        for _ in range(int(4 * float(seconds))):
            self.play_think()
            self.server.closing.wait(0.25)

    def play_think(self, _argument: str = "") -> None:
        self.send_delta({"reasoning_content": "hm"})

    def play_hold(self, _argument: str) -> None:
        """Think, until the test says `steps.release()`."""
        while not self.server.steps.acquire(timeout=0.25):
            self.play_think()

    def play_steps(self, pieces: str) -> None:
        """A reply whose pieces are sent when the test says so, by `steps.release()`."""
        self.play_role()
        for number in range(int(pieces)):
            self.server.steps.acquire(timeout=60)
            self.play_say(f"piece {number} ")
        self.play_finish()

    def play_break(self, _argument: str) -> None:
        """Cut the connection."""
        raise ConnectionAbortedError

    def play_flood(self, _argument: str) -> None:
        """10 MB, unless the connection is closed before."""
        try:
            for sent in range(160):
                self.server.flooded = sent * 65536
                self.play_say("x" * 65536)
            self.play_finish()
        finally:
            self.server.flood_ended.set()

    def play_odd(self, _argument: str) -> None:
        """Chunks with no choices, null content, comments, an emoji in two halves, NUL, a lone surrogate, cut bytes."""
        self.play_data('{"choices": []}')
        self.send_bytes(b": a comment\n\n")
        self.play_data('{"usage": null}')
        self.send_delta({"role": "assistant", "content": None})
        self.play_data('{"choices": [{"delta": null}]}')
        self.play_data('{"choices": [{"delta": {"content": "smile \\ud83d"}}]}')
        self.play_data('{"choices": [{"delta": {"content": "\\ude00 nul \\u0000 lone \\udc00 "}}]}')
        whole = 'data: {"choices": [{"delta": {"content": "caf\u00e9\u2028line"}}]}\r\n\r\n'.encode()
        cut = whole.index(b"\xc3") + 1
        self.send_bytes(whole[:cut])
        self.send_bytes(whole[cut:])
        self.send_delta({"content": None}, "stop")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name that its base has
        """Say nothing: the chat service has a log."""


class FakeOpenAI(ThreadingHTTPServer):
    """The server, in threads of this process; records what it was asked."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0), handler: type[Handler] = Handler) -> None:
        self.lock = threading.Lock()
        self.closing, self.may_answer = threading.Event(), threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.reset()
        super().__init__(address, handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget, and behave."""
        with self.lock:
            self.requests.clear()
            self.keys.clear()
        self.text = ""
        self.connections = self.replies = self.flooded = 0
        self.flood_ended = threading.Event()
        self.is_well = False
        self.steps = threading.Semaphore(0)
        self.may_answer.set()

    def asked(self, content: str) -> list[dict[str, Any]]:
        """Return the requests whose last message is `content`."""
        with self.lock:
            return [request for request in self.requests if request["messages"][-1]["content"] == content]

    def verify_request(self, _request: Any, _client_address: Any) -> bool:
        self.connections += 1
        return True

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Say nothing: a client that hangs up is no error."""

    def stop(self) -> None:
        self.closing.set()
        self.may_answer.set()
        self.shutdown()
        self.server_close()
