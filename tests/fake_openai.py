"""A model that fails in every way that a real one does: the stand-in, with faults on top, on a real HTTP server."""

import json
import threading
from typing import Any

from chat.demo_model import DemoModelHandler, DemoModelServer


class Handler(DemoModelHandler):
    """Plays what the last message asks for, as `fault: … # anything`, until it is told to be well; else replies."""

    server: "FakeOpenAI"
    word_seconds = 0.0

    def do_POST(self) -> None:  # noqa: N802  # the name that its base calls
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers.get("Authorization", ""))
            failures, self.server.failures = self.server.failures, max(0, self.server.failures - 1)
        content = request["messages"][-1]["content"]
        is_fault = content.startswith("fault: ") and not self.server.is_well
        fault = content.removeprefix("fault: ").partition(" #")[0] if is_fault else None
        if failures:
            self.send_json({"error": {"message": "failing"}}, self.server.failure_status)
        elif fault is None:
            self.server.may_answer.wait(30)
            self.server.closing.wait(self.server.first_seconds)
            self.reply(request, (self.server.text or f"reply to {content}").split(" "))
        else:
            name, _, argument = fault.partition(" ")
            getattr(self, f"play_{name}")(argument)

    def reply(self, request: dict[str, Any], words: list[str]) -> None:
        self.word_seconds = self.server.word_seconds
        super().reply(request, words)

    def play_status(self, argument: str) -> None:
        """status CODE [RETRY-AFTER]"""
        status, _, retry_after = argument.partition(" ")
        headers = {"Retry-After": retry_after} if retry_after else None
        self.send_json({"error": {"message": "secret details", "code": "some_code"}}, int(status), headers)

    def play_hang(self, _argument: str) -> None:
        self.server.closing.wait(30)

    def play_slow(self, argument: str) -> None:
        """slow PIECES: one every 100 ms."""
        self.start_stream()
        for number in range(int(argument)):
            self.send_chunk({"content": f"piece {number} "})
            self.server.closing.wait(0.1)
        self.send_chunk({}, finish_reason="stop")
        self.end_stream()

    def play_steps(self, argument: str) -> None:
        """steps PIECES: begin, and send each piece when the test says so, by `steps.release()`."""
        self.start_stream()
        self.send_chunk({"role": "assistant", "content": ""})
        for number in range(int(argument)):
            self.server.steps.acquire(timeout=30)
            self.send_chunk({"content": f"piece {number} "})
        self.send_chunk({}, finish_reason="stop")
        self.end_stream()

    def play_endless(self, _argument: str) -> None:
        """A whole reply, in a body with no end but that of the connection, which stays open."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, reason in ({"content": "all of it"}, None), ({}, "stop"):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.server.closing.wait(30)

    def play_count(self, _argument: str) -> None:
        """Another reply each time."""
        self.server.may_answer.wait(30)
        with self.server.lock:
            self.server.replies += 1
            text = f"reply number {self.server.replies}"
        super().reply({"stream": True}, text.split(" "))

    def play_break(self, argument: str) -> None:
        """break [PIECES]: begin well, then cut the connection."""
        self.start_stream()
        for number in range(int(argument or 2)):
            self.send_chunk({"content": f"piece {number} "})
        self.close_connection = True
        self.connection.close()

    def play_hang_midway(self, _argument: str) -> None:
        self.start_stream()
        self.send_chunk({"content": "begun "})
        self.server.closing.wait(30)

    def play_error_midway(self, _argument: str) -> None:
        self.start_stream()
        self.send_chunk({"content": "begun "})
        self.send_data('{"error": {"message": "secret details"}}')
        self.end_stream()

    def play_error_first(self, _argument: str) -> None:
        self.start_stream()
        self.send_data('{"error": {"message": "secret details"}}')
        self.end_stream()

    def play_unfinished(self, _argument: str) -> None:
        self.start_stream()
        self.send_chunk({"content": "half"})
        self.end_stream()

    def play_finish(self, reason: str) -> None:
        """finish REASON: with some text."""
        self.start_stream()
        self.send_chunk({"content": "some text"})
        self.send_chunk({}, finish_reason=reason)
        self.end_stream()

    def play_empty(self, _argument: str) -> None:
        self.start_stream()
        self.send_chunk({"role": "assistant", "content": ""})
        self.send_chunk({}, finish_reason="stop")
        self.end_stream()

    def play_garbage(self, _argument: str) -> None:
        self.start_stream()
        self.send_data("this is no JSON")
        self.end_stream()

    def play_html(self, _argument: str) -> None:
        self.send_json({"not": "a stream"})

    def play_flood(self, _argument: str) -> None:
        """10 MB, unless the connection is closed before."""
        self.start_stream()
        try:
            for sent in range(160):
                self.server.flooded = sent * 65536
                self.send_chunk({"content": "x" * 65536})
            self.send_chunk({}, finish_reason="stop")
            self.end_stream()
        finally:
            self.server.flood_ended.set()

    def play_odd(self, _argument: str) -> None:
        """Chunks with no choices, null content, comments, an emoji in two halves, NUL, a lone surrogate, cut bytes."""
        self.start_stream()
        self.send_data('{"choices": []}')
        self.send_piece(b": a comment\n\n")
        self.send_data('{"usage": null}')
        self.send_chunk({"role": "assistant", "content": None})
        self.send_data('{"choices": [{"delta": null}]}')
        self.send_data('{"choices": [{"delta": {"content": "smile \\ud83d"}}]}')
        self.send_data('{"choices": [{"delta": {"content": "\\ude00 nul \\u0000 lone \\udc00 "}}]}')
        whole = 'data: {"choices": [{"delta": {"content": "caf\u00e9\u2028line"}}]}\r\n\r\n'.encode()
        cut = whole.index(b"\xc3") + 1
        self.send_piece(whole[:cut])
        self.send_piece(whole[cut:])
        self.send_chunk({"content": None}, finish_reason="stop")
        self.end_stream()


class FakeOpenAI(DemoModelServer):
    """Records what it was asked, and fails as it is told."""

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.closing = threading.Event()
        self.may_answer = threading.Event()
        self.reset()
        super().__init__(Handler, address)

    def reset(self) -> None:
        """Forget, and behave."""
        with self.lock:
            self.requests.clear()
            self.keys.clear()
        self.text = ""
        self.first_seconds = 0.0  # to the first piece
        self.word_seconds = 0.0
        self.failures = 0
        self.failure_status = 500
        self.replies = 0
        self.flooded = 0
        self.flood_ended = threading.Event()
        self.is_well = False
        self.steps = threading.Semaphore(0)
        self.may_answer.set()

    def asked(self, content: str) -> list[dict[str, Any]]:
        """Give the requests whose last message is `content`."""
        with self.lock:
            return [request for request in self.requests if request["messages"][-1]["content"] == content]

    def stop(self) -> None:
        self.closing.set()
        self.may_answer.set()
        self.shutdown()
        self.server_close()
