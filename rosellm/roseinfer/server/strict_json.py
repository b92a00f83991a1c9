"""Request bodies are read as JSON, and as nothing else.

Python's own reader takes NaN, Infinity and lone surrogates, none of which is JSON,
and exhausts the stack on deep nesting.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

MOST_MEMBERS = 50_000
"""Of all objects and lists in a body together: checking them holds up the event loop."""

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose body is bounded, and whose ``json()`` refuses what is not JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit: int = self.app.state.service.max_body
            said = self.headers.get("content-length", "")
            self._check_size(int(said) if said.isdecimal() else 0, limit)
            body = bytearray()
            async for piece in self.stream():
                body += piece
                self._check_size(len(body), limit)
            self._body = bytes(body)
        return self._body

    @staticmethod
    def _check_size(size: int, limit: int) -> None:
        if size > limit:
            raise HTTPException(413, f"the body is larger than {limit} bytes")

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False)
            except ValueError as error:
                raise HTTPException(400, f"the body is not valid JSON: {error}") from None
            if _has_too_many(self._json, self._body):
                raise HTTPException(
                    400, f"the body's objects have more than {MOST_MEMBERS} members"
                )
            self.state.sent = self._json
        return self._json

    def replace_json(self, body: Any) -> None:
        """From now on ``json()`` is this."""
        self._json = body


class StrictRoute(APIRoute):
    """A route that reads its body through ``StrictRequest``."""

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await self.answer(handle, StrictRequest(request.scope, request.receive))

        return strict

    async def answer(self, handle: Handle, request: StrictRequest) -> Response:
        """What the route says to this request."""
        return await handle(request)


def _has_too_many(value: Any, body: bytes) -> bool:
    """Whether its objects have more members, and it more lists, than are checked."""
    if body.count(b":") + body.count(b"[") <= MOST_MEMBERS:
        return False
    open, seen = [value] * isinstance(value, dict | list), 0
    while open and seen <= MOST_MEMBERS:
        each = open.pop()
        inside = each.values() if isinstance(each, dict) else each
        seen += len(each) if isinstance(each, dict) else 1
        open += [part for part in inside if isinstance(part, dict | list)]
    return seen > MOST_MEMBERS
