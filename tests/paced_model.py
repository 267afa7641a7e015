"""python -m tests.paced_model PORT FIRST GAP PIECES: a model for crowds, whose own cost is small.

FIRST and GAP are the seconds to the first of its PIECES, and between them.
"""

import asyncio
import contextlib
import json
import re
import sys


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    event = json.dumps({"id": "paced", "object": "chat.completion.chunk", "model": "paced", "choices": [choice]})
    return _chunked(f"data: {event}\n\n".encode())


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BEGIN = HEAD + _chunk({"role": "assistant", "content": ""})


async def serve(port: int, first: float, gap: float, pieces: int) -> None:
    stream = [_chunk({"content": f"word{number} "}) for number in range(pieces)]
    stream[-1] += _chunk({}, "stop") + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the caller has gone
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(BEGIN)
                await asyncio.sleep(first)
                for piece in stream:
                    writer.write(piece)
                    await writer.drain()
                    if piece is not stream[-1]:
                        await asyncio.sleep(gap)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
