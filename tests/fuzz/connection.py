"""One connection that is kept alive, over which requests are sent as they are written."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools

from tests.fuzz.answers import Got
from tests.fuzz.bodies import Sent

PATIENCE_S = 60.0


def written(sent: Sent) -> bytes:
    """The bytes of a request."""
    lines = [f"{sent.method} {sent.path} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in sent.headers]
    lines += [f"content-length: {len(sent.body)}", "", ""]
    return "\r\n".join(lines).encode() + sent.body


class Connection:
    """A client's side. The server may close it after an answer; then the next one is another."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._line: _Line | None = None

    async def ask(self, sent: Sent) -> Got:
        """
        Raises:
            ConnectionError: it was closed before the whole answer was there.
            TimeoutError: no answer.
        """
        if self._line is None or not self._line.usable:
            self.close()
            loop = asyncio.get_running_loop()
            _, self._line = await loop.create_connection(_Line, "127.0.0.1", self._port)
        try:
            return await asyncio.wait_for(self._line.ask(sent), PATIENCE_S)
        except TimeoutError:
            self.close()  # what comes late is not the next one's answer
            raise

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None


class _Line(asyncio.Protocol):
    usable = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, sent: Sent) -> Got:
        self._status, self._headers, self._body = 0, {}, bytearray()
        self._begun = False
        self._headless = sent.method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Got] = asyncio.get_running_loop().create_future()
        self._transport.write(written(sent))
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"no HTTP: {error}: {data[:200]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._begun and not self._answer.done():
            self._answer.set_result(self._got(whole=False))
        self._fail(ConnectionError(f"closed before the answer was whole: {error}"))

    def _fail(self, error: Exception) -> None:
        self.usable = False
        if not self._answer.done():
            self._answer.set_exception(error)

    # -- the parser tells --

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status, self._begun = self._parser.get_status_code(), True
        self.usable = self._parser.should_keep_alive()
        if self._headless:  # the parser knows no request, and waits for a body
            self.usable = False
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not self._answer.done():
            self._answer.set_result(self._got())

    def _got(self, *, whole: bool = True) -> Got:
        return Got(self._status, self._headers, bytes(self._body), whole)
