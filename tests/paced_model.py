"""python -m tests.paced_model PORT FIRST GAP: a model for crowds, whose own cost is small; seconds to the first of its
20 pieces, and between them."""

import asyncio
import json
import sys

PIECES = 20


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    event = json.dumps({"id": "paced", "object": "chat.completion.chunk", "model": "paced", "choices": [choice]})
    return _chunked(f"data: {event}\n\n".encode())


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = [HEAD + _chunk({"role": "assistant", "content": ""})]
STREAM += [_chunk({"content": f"word{number} "}) for number in range(PIECES)]
STREAM[-1] += _chunk({}, "stop") + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class PacedModel(asyncio.Protocol):
    """One connection, on which one request comes at a time."""

    def __init__(self, first: float, gap: float) -> None:
        self.first, self.gap = first, gap
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, separator, body = self.data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
        if separator and len(body) >= length:
            self.data = b""
            self.transport.write(STREAM[0])
            self.send(1, self.first)

    def send(self, number: int, seconds: float) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.send, number, 0.0)
            return
        if number == 1 and not self.gap:
            self.transport.write(b"".join(STREAM[1:]))
            return
        self.transport.write(STREAM[number])
        if number < PIECES and not self.transport.is_closing():
            asyncio.get_running_loop().call_later(self.gap, self.send, number + 1, 0.0)


async def serve(port: int, first: float, gap: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PacedModel(first, gap), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
