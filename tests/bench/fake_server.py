"""A server that answers as OpenAI's would, with token counts and delays that a test knows."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None}
DONE = b"data: [DONE]\n\n"


@dataclass
class FakeServer:
    """Behaviour, and what was asked.

    Attributes:
        first_s, gap_s: delay of the first token and between tokens.
        pieces: into how many network packets an event is cut.
        usage: whether token counts are sent.
        fail: by number of the request, what goes wrong: "busy", "broken", "in stream".
    """

    first_s: float = 0.0
    gap_s: float = 0.0
    pieces: int = 1
    usage: bool = True
    fail: dict[int, str] = field(default_factory=dict)
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):  # a client may leave when it likes
                await self._handle(reader, writer)
        finally:
            writer.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        self.headers.append(headers)
        if first.startswith("GET"):
            _answer(writer, 200, {"object": "list", "data": [{"id": "fake"}]})
        else:
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.requests.append(body)
            await self._post(writer, body, self.fail.get(len(self.requests)))
        await writer.drain()

    async def _post(self, writer: asyncio.StreamWriter, body: Any, fail: str | None) -> None:
        if fail == "busy":
            error = {"message": "the queue is full", "type": "server_error", "code": "queue_full"}
            return _answer(writer, 503, {"error": error})
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if "messages" in body:
            self._send(writer, ROLE)
        for index in range(body["max_tokens"]):
            await asyncio.sleep(self.gap_s if index else self.first_s)
            if index == 1 and fail == "broken":
                return writer.close()
            if index == 1 and fail == "in stream":
                self._send(writer, {"error": {"message": "out of memory"}})
                return writer.write(b"0\r\n\r\n")
            await self._send_slowly(writer, chunk(body, f" t{index}"))
        self._send(writer, chunk(body, "", "length"))
        if self.usage:
            counts = {"prompt_tokens": count(body), "completion_tokens": body["max_tokens"]}
            self._send(writer, {"choices": [], "usage": counts})
        writer.write(framed(DONE) + b"0\r\n\r\n")
        return None

    def _send(self, writer: asyncio.StreamWriter, event: Any) -> None:
        writer.write(framed(b"data: " + json.dumps(event).encode() + b"\n\n"))

    async def _send_slowly(self, writer: asyncio.StreamWriter, event: Any) -> None:
        data = framed(b"data: " + json.dumps(event).encode() + b"\n\n")
        size = -(-len(data) // self.pieces)
        for start in range(0, len(data), size):
            writer.write(data[start : start + size])
            if self.pieces > 1:
                await asyncio.sleep(0.001)


def framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def chunk(body: Any, text: str, finish: str | None = None) -> Any:
    inside: Any = {"delta": {"content": text}} if "messages" in body else {"text": text}
    return {"choices": [{"index": 0, **inside, "finish_reason": finish}], "usage": None}


def count(body: Any) -> int:
    """Token ids as they are; of text, two tokens a word, and five around a chat."""
    if "messages" in body:
        return 5 + 2 * len(body["messages"][0]["content"].split())
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else 2 * len(prompt.split())


def _answer(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """Serve on a thread; ``server.url`` says where."""
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
            server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()
