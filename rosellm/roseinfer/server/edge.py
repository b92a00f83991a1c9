"""Connections: what one client may take of the server before and after its request is read.

A request whose head is too large, whose framing has two readings, or that does not arrive in time
is answered here, in the API's own form, and its connection closed; so is a connection beyond the
limit. A client that stops reading is cut off. What a request says is for the application.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.error_body import error_body, error_headers
from rosellm.roseinfer.server.schemas.responses import to_json

access_log = logging.getLogger("rosellm.access")

MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
MAX_TARGET_BYTES = 8 << 10
SEND_BUFFER_BYTES = 256 << 10
MOST_AHEAD = 64
"""Requests that a client may send ahead of their answers. They are read, since else nobody would
notice that it leaves, and kept."""
_LINGER_S = 2.0
_LATE_S = 0.05
# RFC 3986's host and port, without its escapes, which no client sends.
_HOST = re.compile(rb"([A-Za-z0-9._~!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?")


@dataclass(frozen=True)
class Limits:
    """What a server grants.

    Attributes:
        connections: at one time.
        receipt_s: from a connection's start, or a further request's first byte, to the end of the
            request.
        stall_s: that a client may leave a full send buffer as it is.
    """

    connections: int
    receipt_s: float
    stall_s: float


def protocol(limits: Limits, on_refusal: Callable[[int], None]) -> type[EdgeProtocol]:
    """Uvicorn's protocol, with these limits.

    Args:
        on_refusal: is told the status of what is answered here.
    """
    own = {"limits": limits, "on_refusal": staticmethod(on_refusal)}
    return type("LimitedProtocol", (EdgeProtocol,), own)


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    on_refusal: Callable[[int], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refused = False
        self._begun = False  # whether a byte of a request has come
        self._head_complete = False
        self._header_bytes = 0
        self._shown = False  # whether the parser has shown anything of the latest bytes
        self._kept = 0  # bytes of which it has shown nothing
        self._answered: RequestResponseCycle | None = None  # uvicorn's own is the latest to arrive
        self._receipt = _Deadline(self.loop, self.limits.receipt_s, self._receipt_is_late)
        self._stall = _Deadline(self.loop, self.limits.stall_s, lambda: self.transport.abort())

    # -- its beginning and end ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Left to itself, the kernel would take in megabytes for a client that reads nothing.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES
        )
        self._receipt.start()
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections are open; try again later", "overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        self._receipt.stop()
        self._stall.stop()
        self._end_early(self._answered)
        super().connection_lost(exc)

    # -- reading -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse it. A field is shown by the parser when it is complete, and kept until then: what
        grows without an end is given up here."""
        if self._refused:
            return
        self._shown = False
        super().data_received(data)
        self._kept = 0 if self._shown else self._kept + len(data)
        if self._kept > MAX_HEADER_BYTES and not self._refused:
            self._refuse(431, f"one field is more than {MAX_HEADER_BYTES >> 10} KB", "invalid_http")
        elif self._kept and not self._is_answering:
            self._receipt.start()  # empty lines, say: they have ended the time to be idle

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when its parser gives up, our own refusals among the causes."""
        if not self._refused:
            self._refuse(400, "this is not valid HTTP", "invalid_http")

    def on_message_begin(self) -> None:
        self._shown = True
        super().on_message_begin()
        self._begun, self._head_complete, self._header_bytes = True, False, 0
        self._receipt.start()

    def on_url(self, url: bytes) -> None:
        self._shown = True
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._give_up(414, f"the request's target is longer than {MAX_TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._shown = True
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            limit = f"{MAX_HEADERS} fields and {MAX_HEADER_BYTES >> 10} KB"
            self._give_up(431, f"the headers are more than {limit}")
        if not self._head_complete:  # fields behind a body are nobody's: they would change the head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._give_up(400, "a request has one Host header")
        if hosts and not _HOST.fullmatch(hosts[0].strip()):
            self._give_up(400, "the Host header is not a host's name")
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if codings and [each.strip().lower() for each in codings] != [b"chunked"]:
            self._give_up(400, "the only transfer coding that is read is chunked")
        self._head_complete = True
        super().on_headers_complete()
        if len(self.pipeline) > MOST_AHEAD:
            self._give_up(503, f"more than {MOST_AHEAD} requests wait for answers here")
        if self.pipeline:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._shown = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._shown = True
        self._receipt.stop()
        self._begun = self._head_complete = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Called by uvicorn when a request's turn has come."""
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self, status: int, message: str) -> None:
        self._refuse(status, message, "invalid_http")
        raise httptools.HttpParserError(message)

    # -- deadlines ---------------------------------------------------------------------------

    def _receipt_is_late(self) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self.pipeline:  # the next request waits unread behind one that is being answered
            self._receipt.start()
        elif not self._begun:
            self._close()
        else:
            limit = f"{self.limits.receipt_s:g} s"
            self._refuse(408, f"the request did not arrive within {limit}", "request_timeout")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall.start()

    def resume_writing(self) -> None:
        self._stall.stop()
        super().resume_writing()
        self._limit_closing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._limit_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._limit_closing()

    def _close(self) -> None:
        self.transport.close()
        self._limit_closing()

    def _limit_closing(self) -> None:
        """A closed transport is there until its client has read the rest, however little it is."""
        if self.transport.is_closing():
            self._stall.start()

    # -- refusing ----------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer in the application's place and read no more. What was asked before is answered
        first, and then nothing else: two answers must not be mixed."""
        self._refused = True
        self._receipt.stop()
        own = self.cycle if self._head_complete else None  # of the request that is refused
        if self._is_answering and own is not self._answered:
            self._hang_up_after_earlier(own)
        elif own is not None and own.response_started:  # before all of the request was there
            self.transport.abort()
        else:
            self._end_early(own)
            self._answer(status, message, code)

    def _hang_up_after_earlier(self, own: RequestResponseCycle | None) -> None:
        if own is not None:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answered
        assert last is not None
        last.keep_alive = False

    @staticmethod
    def _end_early(cycle: RequestResponseCycle | None) -> None:
        """Tell the application that nobody waits for its answer."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _answer(self, status: int, message: str, code: str) -> None:
        error = RequestError(message, status=status, code=code)
        body = to_json(error_body(error))
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in error_headers(error).items()),
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        # Closed at once, with unread bytes left, TCP would reset and the answer be lost.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self._close)
        self.on_refusal(status)
        client = (self.client or ("-",))[0]
        fields = {"client": client, "status": status, "error": message}
        access_log.info("%s refused: %d %s", client, status, message, extra={"fields": fields})


class _Deadline:
    """Calls something when a time has passed, unless it is stopped before.

    When the loop itself comes late, it has not looked yet at what arrived meanwhile, so it gets as
    much time again as it was late; but once, since a busy loop may be late for ever.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._then = then
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._put_off = False

    def start(self) -> None:
        """Does nothing if the time runs already."""
        if self._timer is None:
            self._put_off = False
            self._wait(self._seconds)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._end)

    def _end(self) -> None:
        late = self._loop.time() - self._due
        if late > _LATE_S and not self._put_off:
            self._put_off = True
            return self._wait(late)
        self._timer = None
        self._then()
