"""Serves an ``LLM``: requests that arrive on any event loop are answered on the LLM's own.

The bridge is ASGI itself, its two functions ``receive`` and ``send``. So nothing behind it is
ever touched by two loops, and the LLM's own methods go on working beside the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rosellm.roseinfer.server.service import Service

T = TypeVar("T")


class Loop(Protocol):
    """An event loop on another thread."""

    async def run_elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there to the end; cancelling this cancels it.

        Raises:
            EngineDeadError: that loop is closed.
        """


class Host(Protocol):
    """What has a service on a loop of its own: an ``LLM`` or an ``InferenceEngine``."""

    @property
    def service(self) -> Service: ...
    @property
    def loop(self) -> Loop: ...


class Elsewhere:
    """Runs the application behind it on the host's loop."""

    def __init__(self, app: ASGIApp, host: Host) -> None:
        self.app = app
        self._host = host  # kept alive for as long as it is served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        here = asyncio.get_running_loop()

        async def receive_there() -> Message:
            return await _on(here, receive())

        async def send_there(message: Message) -> None:
            await _on(here, send(message))

        async def answer() -> None:
            await self.app(scope, receive_there, send_there)

        await self._host.loop.run_elsewhere(answer())


async def _on(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[T]) -> T:
    """Await it on another loop."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_await(awaitable), loop))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable
