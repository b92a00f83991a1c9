"""Request bodies are read as JSON, and as nothing else.

Python's own reader takes NaN, Infinity and lone surrogates, none of which is JSON,
and exhausts the stack on deep nesting.

A large body is read and checked against its schema in a thread, so that the event loop has its turn
meanwhile. A stretch of plain numbers is still read in one go, about 50 ms a megabyte at worst.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import from_json

from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.fields import Body

MOST_MEMBERS = 50_000
"""Of all objects and lists in a body together: checking them takes the interpreter for long."""
INLINE_BYTES = 1 << 15  # of JSON: a few milliseconds at most

T = TypeVar("T")
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
        """The body; once ``check`` has found it good, as the schema's own object."""
        if hasattr(self, "_checked"):
            return self._checked
        if not hasattr(self, "_json"):
            body = await self.body()
            self._json = await _off_loop(body, lambda: _parse(body))
            self.state.sent = self._json
        return self._json

    async def check(self, schema: type[Body]) -> None:
        """Check the body against its schema, which the framework would do on the event loop.

        Raises:
            RequestValidationError: the framework's own.
        """
        value = await self.json()
        self._checked = await _off_loop(await self.body(), lambda: _validate(schema, value))

    @property
    def is_json(self) -> bool:
        """Whether the framework will take the body for JSON."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return not kind or kind == "application/json" or kind.endswith("+json")

    def replace_json(self, body: Any) -> None:
        """From now on ``json()`` is this."""
        self._json = body


async def _off_loop(body: bytes, work: Callable[[], T]) -> T:
    return await off_loop(len(body), work, inline=INLINE_BYTES)


def _parse(body: bytes) -> Any:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None
    if _has_too_many(value, body):
        raise HTTPException(400, f"the body's objects have more than {MOST_MEMBERS} members")
    return value


def _validate(schema: type[Body], value: Any) -> Body:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = [
            {**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)
        ]
        raise RequestValidationError(found, body=value) from None


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


class StrictRoute(APIRoute):
    """A route that reads its body through ``StrictRequest``."""

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()
        assert self.body_field is not None
        schema: type[Body] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def checked(request: Request) -> Response:
            assert isinstance(request, StrictRequest)
            if request.is_json and await request.body():
                await request.check(schema)
            return await handle(request)

        async def strict(request: Request) -> Response:
            return await self.answer(checked, StrictRequest(request.scope, request.receive))

        return strict

    async def answer(self, handle: Handle, request: StrictRequest) -> Response:
        """What the route says to this request."""
        return await handle(request)
