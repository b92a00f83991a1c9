"""One HTTP request and its answer, with the time at which every piece of it arrived.

Not httpx: it takes five times the processor time for a chunk, which with many streams shows up
in what is measured. The parser here is httptools', in C, and pieces are handed on from the event
loop's callback itself, without waking a task for each.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from rosellm.roseinfer.errors import ConfigError

OnBody = Callable[[bytes, float], None]
"""Given a piece of the body and ``time.perf_counter()`` at its arrival."""


class ExchangeError(Exception):
    """A request that got no whole answer. ``str(error)`` says why, in a few words."""


@dataclass(frozen=True)
class Server:
    """Where requests go."""

    host: str
    port: int
    tls: bool
    prefix: str
    api_key: str | None = None

    @classmethod
    def at(cls, base_url: str, api_key: str | None = None) -> Server:
        """Parse a base URL; one without a path gets OpenAI's ``/v1``."""
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError(f"--base-url {base_url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(f"--base-url {base_url!r} is not like http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        return cls(
            host, port or (443 if tls else 80), tls, parts.path.rstrip("/") or "/v1", api_key
        )


@dataclass(frozen=True)
class Answer:
    """Status and body. The body is empty if it was handed on piece by piece.

    Attributes:
        connected: ``time.perf_counter()`` when the connection stood.
    """

    status: int
    body: bytes
    connected: float


async def exchange(
    server: Server, path: str, body: bytes | None = None, on_body: OnBody | None = None
) -> Answer:
    """GET, or POST a JSON body, on a connection of its own.

    Args:
        on_body: is handed the body of an answer with status 200 as it arrives.

    Raises:
        ExchangeError: no connection, no HTTP, or an answer that broke off.
    """
    loop = asyncio.get_running_loop()
    request = _request(server, path, body)
    try:
        transport, protocol = await loop.create_connection(
            lambda: _Exchange(request, on_body),
            server.host,
            server.port,
            ssl=ssl.create_default_context() if server.tls else None,
        )
    except OSError as error:
        raise ExchangeError(f"no connection: {error.strerror or error}") from None
    try:
        return await protocol.answer
    finally:
        transport.abort()


def _request(server: Server, path: str, body: bytes | None) -> bytes:
    lines = [
        f"{'GET' if body is None else 'POST'} {server.prefix}{path} HTTP/1.1",
        f"Host: {server.host}:{server.port}",
        "Connection: close",
        "Accept: */*",
    ]
    if server.api_key:
        lines.append(f"Authorization: Bearer {server.api_key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class _Exchange(asyncio.Protocol):
    """The connection's callbacks, and (named ``on_...``) the parser's."""

    def __init__(self, request: bytes, on_body: OnBody | None) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._request = request
        self._hand_on = on_body
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._connected = self._now = 0.0
        self._delimited = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connected = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error.__context__ or error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parser.get_status_code() and not self._delimited and exc is None:
            self.on_message_complete()  # the body of such an answer ends with the connection
        self._fail("the connection closed before the answer was whole")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._delimited |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_body(self, body: bytes) -> None:
        if self._hand_on is not None and self._parser.get_status_code() == 200:
            self._hand_on(body, self._now)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if not self.answer.done():
            status = self._parser.get_status_code()
            self.answer.set_result(Answer(status, bytes(self._body), self._connected))

    def _fail(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ExchangeError(reason))
