"""Accepts https connections, so that they count, and have a deadline, before they are secure.

An event loop that listens with a certificate shows a connection only when its handshake is over:
until then nobody counts it, for up to a minute. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from rosellm.roseinfer.server.edge import Limits

log = logging.getLogger(__name__)
access_log = logging.getLogger("rosellm.access")

_PAUSE_S = 1.0  # before it is tried again when there are no more descriptors


@dataclass
class TlsDoor:
    """What stands in the place of an ``asyncio.Server``.

    Attributes:
        sock: listens already.
        make: what a connection is handed to once it is secure.
        secured: how many of those there are.
        on_refusal: is told the status of what is hung up on here.
    """

    sock: socket.socket
    context: ssl.SSLContext
    limits: Limits
    make: Callable[[], asyncio.Protocol]
    secured: Callable[[], int]
    on_refusal: Callable[[int], None]
    _handshakes: set[asyncio.Task[None]] = field(default_factory=set)

    def open(self) -> None:
        """Accept from now on."""
        self.sock.setblocking(False)
        self._accepting = asyncio.ensure_future(self._accept())

    def close(self) -> None:
        """Accept nobody more. A handshake has asked for nothing yet: it is broken off."""
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self.sock)
            except OSError as error:
                log.error("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._handshakes) + self.secured() >= self.limits.connections:
                self._refuse(connection, str(address[0]))
                continue
            task = asyncio.ensure_future(self._secure(connection))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _secure(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop, seconds = asyncio.get_running_loop(), self.limits.receipt_s
        with contextlib.suppress(OSError):  # it says what is no TLS, or is too slow, or has gone
            await loop.connect_accepted_socket(
                self.make, connection, ssl=self.context, ssl_handshake_timeout=seconds
            )

    def _refuse(self, connection: socket.socket, client: str) -> None:
        """Nothing can be said to a client before it is secure."""
        connection.close()
        self.on_refusal(503)
        error = "too many connections are open"
        fields = {"client": client, "status": 503, "error": error}
        access_log.info("%s refused: %d %s", client, 503, error, extra={"fields": fields})
