"""Who is let in: nobody while the model loads, everybody, or nobody new while the server ends.

It stands before the application, which is there only once the model is. The server listens from its
first moment on, so that whoever asks is told how far it is instead of finding nobody at home.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.auth import path_as_sent
from rosellm.roseinfer.server.error_body import error_response
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.middleware import RequestLog
from rosellm.roseinfer.server.schemas.responses import Alive

log = logging.getLogger(__name__)

ALIVE = b"/livez"
WATCHED = frozenset({b"/metrics"})
"""Let in while the server ends: who watches it wants to see that too."""


class Gate:
    """An ASGI application around the one that answers."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._closed = "the model is loading"  # why nobody is let in; empty if everybody is
        self._on_refusal: Callable[[int], None] | None = None
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def loading(self, how_far: str) -> None:
        """Tell whoever asks how far the model is."""
        self._closed = f"the model is loading: {how_far}"

    def open(self, app: ASGIApp, on_refusal: Callable[[int], None]) -> None:
        """Let everybody in to this application.

        Args:
            on_refusal: is told the status of what is answered in its place from now on.
        """
        self._app, self._closed, self._on_refusal = app, "", on_refusal

    def close(self, reason: str) -> None:
        """Let nobody in any more. Who is inside stays."""
        self._closed = reason

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._empty.wait()

    def refused(self, status: int) -> None:
        """Somebody was answered in the application's place."""
        if self._on_refusal is not None:
            self._on_refusal(status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None and (not self._closed or path_as_sent(scope) in WATCHED):
            return await self._admit(self._app, scope, receive, send)
        if scope["type"] == "http":
            await RequestLog(self._refuse)(scope, receive, send)

    async def _admit(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def note_and_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._inside += 1
        self._empty.clear()
        try:
            await app(scope, receive, note_and_send)
        except asyncio.CancelledError:  # the server ends: that needs no traceback
            log.warning("an answer was broken off, because the server ends")
            if not begun:
                await self._not_ready(scope, receive, send)
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if path_as_sent(scope) == ALIVE:
            return await json_response(Alive())(scope, receive, send)
        await _read_out(scope, receive)
        await self._not_ready(scope, receive, send)

    async def _not_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.refused(503)
        error = RequestError(self._closed or "the server ends", status=503, code="not_ready")
        await error_response(error, {"connection": "close"})(scope, receive, send)


async def _read_out(scope: Scope, receive: Receive) -> None:
    """Take in what is left of a request. Hung up on with bytes unread, TCP would reset, and the
    answer be lost. Who asks whether to send them has sent none."""
    if "expect" not in Headers(scope=scope):
        while (await receive()).get("more_body"):
            pass
