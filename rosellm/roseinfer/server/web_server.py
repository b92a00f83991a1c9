"""Uvicorn as it is needed here: without its signal handlers, with our limits, TLS included."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from rosellm.roseinfer.config import ServerConfig
from rosellm.roseinfer.server import edge
from rosellm.roseinfer.server.cors import Cors
from rosellm.roseinfer.server.tls import load_tls
from rosellm.roseinfer.server.tls_door import TlsDoor

if TYPE_CHECKING:
    from ssl import SSLContext

FAREWELL_S = 5  # for the last bytes of answers to leave


class Server(uvicorn.Server):
    """Uvicorn without its signal handlers, which would end the process by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _TlsServer(Server):
    """One whose connections are accepted by a ``TlsDoor``."""

    def __init__(
        self,
        config: uvicorn.Config,
        context: SSLContext,
        limits: edge.Limits,
        on_refusal: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self._context, self._limits, self._on_refusal = context, limits, on_refusal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        doors = [
            TlsDoor(
                sock,
                self._context,
                self._limits,
                make=self._connection,
                secured=lambda: len(self.server_state.connections),
                on_refusal=self._on_refusal,
            )
            for sock in sockets or ()
        ]
        for door in doors:
            door.open()
        self.servers = doors  # type: ignore[assignment]
        self.started = True

    def _connection(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def web_server(app: ASGIApp, asked: ServerConfig, on_refusal: Callable[[int], None]) -> Server:
    """A server of this application, which is not started.

    Args:
        on_refusal: is told the status of what is answered before the application is asked.

    Raises:
        OSError: the certificate's files have changed since they were checked.
    """
    limits = edge.Limits(
        connections=asked.max_connections,
        receipt_s=asked.request_timeout_s,
        stall_s=asked.stall_timeout_s,
    )
    config = uvicorn.Config(
        Cors(app, asked.cors_origin) if asked.cors_origin else app,
        http=edge.protocol(limits, on_refusal),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # it would say again what has its line: a request that is no HTTP
        access_log=False,
        server_header=False,
        timeout_keep_alive=asked.keep_alive_timeout_s,
        timeout_graceful_shutdown=FAREWELL_S,
    )
    if (context := load_tls(asked)) is None:
        return Server(config)
    return _TlsServer(config, context, limits, on_refusal)
