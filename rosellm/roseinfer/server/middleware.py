"""What wraps every request, as plain ASGI: request ids, and leaving clients.

Starlette's ``BaseHTTPMiddleware`` would hide disconnects and buffer streams.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rosellm.roseinfer.server.error_body import error_response
from rosellm.roseinfer.server.limits import UNLIMITED

access_log = logging.getLogger("rosellm.access")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestLog:
    """Gives every request an id and a line in the log, and answers what nobody caught.

    Every answer, the last kind too, says what is left of its key's limits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = time.monotonic()
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                account = scope["state"].get("account", UNLIMITED)
                MutableHeaders(scope=message).update(
                    {"x-request-id": request_id, **account.headers()}
                )
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            response = error_response(error)
            if status == 0:
                await response(scope, receive, noting)
        finally:
            if status >= 400:
                scope["app"].state.service.metrics.reject(status)
            _log_line(scope, status, time.monotonic() - begun, request_id)


class CancelOnDisconnect:
    """A client that leaves cancels the work it asked for, whatever that is waiting on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        client = _Client(receive)
        work = asyncio.ensure_future(self.app(scope, client.receive, send))
        gone = asyncio.ensure_future(client.leave())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            left = not work.done()
            work.cancel()
            await asyncio.wait({work})
        if not (left and work.cancelled()):
            work.result()


class _Client:
    """The receiving side of a request, which notices when the client has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._body_read = asyncio.Event()
        self._gone = asyncio.Event()

    async def receive(self) -> Message:
        """The next piece of the body; after it, nothing until the client has gone."""
        if self._body_read.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if not message.get("more_body"):
            self._body_read.set()
        return message

    async def leave(self) -> None:
        """Return once the client has gone."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"


def _log_line(scope: Scope, status: int, seconds: float, request_id: str) -> None:
    client = scope.get("client") or ("-",)
    shown = status or "gone"
    access_log.info(
        "%s %s %s %s %.3f s %s",
        *(client[0], scope["method"], _printable(scope["path"]), shown, seconds, request_id),
    )


def _printable(path: str) -> str:
    """On one line, whatever the client put into it."""
    return path.encode("unicode_escape").decode()
