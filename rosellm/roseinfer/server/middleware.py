"""What wraps every request, as plain ASGI: request ids, and leaving clients.

Starlette's ``BaseHTTPMiddleware`` would hide disconnects and buffer streams.
"""

from __future__ import annotations

import asyncio
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rosellm.roseinfer import logs
from rosellm.roseinfer.server.access import log_request
from rosellm.roseinfer.server.error_body import error_response
from rosellm.roseinfer.server.limits import UNLIMITED
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.server.timeline import Timeline

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestLog:
    """Gives every request an id and a line in the log, and answers what nobody caught.

    Every answer, the last kind too, says what is left of its key's limits. What is behind it may
    be the application, or what answers in its place: that has no service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = _request_id(Headers(scope=scope))
        logs.request_id.set(request_id)
        timeline = Timeline()
        scope.setdefault("state", {}).update(request_id=request_id, timeline=timeline)
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                account = scope["state"].get("account", UNLIMITED)
                MutableHeaders(scope=message).update(
                    {"x-request-id": request_id, **account.headers()}
                )
            with timeline.sending():
                await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            response = error_response(error)
            if status == 0:
                await response(scope, receive, noting)
        finally:
            service: Service | None = scope["app"].state.service if "app" in scope else None
            log_request(scope, status, prompts=service is not None and service.log_prompts)
            if service is not None:
                _report(scope, status, service)


def _report(scope: Scope, status: int, service: Service) -> None:
    if scope["state"]["timeline"].disconnected:
        service.metrics.disconnects.inc()
    if status >= 400:
        service.metrics.reject(status)
    if service.tracing is not None:
        service.tracing.record(scope, status)


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
            left = not work.done()
            if left and gone.done() and "timeline" in scope["state"]:
                scope["state"]["timeline"].disconnected = True
            gone.cancel()
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
        if message["type"] == "http.disconnect":  # before all of the body was there
            self._gone.set()
            await asyncio.get_running_loop().create_future()  # until the work is cancelled
        return message

    async def leave(self) -> None:
        """Return once the client has gone."""
        await self._body_read.wait()
        while not self._gone.is_set() and (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


def _request_id(headers: Headers) -> str:
    sent = headers.get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
