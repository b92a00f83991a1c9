"""Responses that are sent while they are made."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rosellm.roseinfer.errors import EngineDeadError, RequestError
from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.error_body import as_request_error, error_body
from rosellm.roseinfer.server.schemas.responses import to_json

DONE = b"data: [DONE]\n\n"


class Streamed(Response):
    """Sends pieces as they come and closes the answer they come from, however it ends.

    What the pieces fail with on the way can no longer be said: the transfer stays incomplete,
    which the web server sees, logs and closes the connection for. Leaving clients are not its
    business: ``CancelOnDisconnect`` cancels the request.
    """

    def __init__(self, answer: Answer, pieces: AsyncIterator[bytes], media_type: str) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._answer = answer
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with self._answer:
            await send(start)
            try:
                async for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except (RequestError, EngineDeadError):
                return
            await send({"type": "http.response.body", "body": b""})


def event_stream(answer: Answer, chunks: AsyncIterator[msgspec.Struct]) -> Streamed:
    """Chunks as server-sent events (https://html.spec.whatwg.org, section 9.2)."""
    return Streamed(answer, _events(chunks), "text/event-stream")


async def _events(chunks: AsyncIterator[msgspec.Struct]) -> AsyncIterator[bytes]:
    """A failure on the way is an event too, and then there is no ``[DONE]``."""
    try:
        async for chunk in chunks:
            yield _event(chunk)
        yield DONE
    except Exception as error:
        yield _event(error_body(as_request_error(error)))


def _event(data: msgspec.Struct) -> bytes:
    return b"data: " + to_json(data) + b"\n\n"
