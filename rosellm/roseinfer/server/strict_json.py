"""Request bodies are read as JSON, and as nothing else.

Python's own reader takes NaN, Infinity and lone surrogates, none of which is JSON,
and exhausts the stack on deep nesting.

A large body is read and checked against its schema in a thread, so that the event loop has its turn
meanwhile. Each of the two is one call that does not let go of the interpreter, so how many values a
body may have is bounded, and counted before it is read.
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
"""Members of all objects in a body together, and lists: checking them takes long."""
MOST_TEXTS = 1 << 17
MOST_VALUES = 1 << 18
"""Numbers and texts together: about 20 ms to read, and as much again to check."""
INLINE_BYTES = 1 << 15  # of JSON: a few milliseconds at most

T = TypeVar("T")
Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose body is bounded, and whose ``json()`` refuses what is not JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit: int = self.app.state.service.max_body
            self._check_coding(self.headers.get("content-encoding", ""))
            said = self.headers.get("content-length", "")
            self._check_size(int(said) if said.isdecimal() else 0, limit)
            body = bytearray()
            async for piece in self.stream():
                body += piece
                self._check_size(len(body), limit)
            self._body = bytes(body)
        return self._body

    @staticmethod
    def _check_coding(coding: str) -> None:
        if coding.strip().lower() not in ("", "identity"):
            raise HTTPException(415, "send the body as it is, without a content encoding")

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
    if len(body) > MOST_MEMBERS:  # each takes a character or more
        _check_counts(body)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None


def _validate(schema: type[Body], value: Any) -> Body:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        found = [
            {**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)
        ]
        raise RequestValidationError(found, body=value) from None


def _check_counts(body: bytes) -> None:
    """Refuse more than is read in one go. Exact as far as the body is JSON, which is as far as it
    is read."""
    escapes = (b"\\\\", b'\\"')  # without them, only the quotes around texts are left
    bare = body.replace(escapes[0], b"").replace(escapes[1], b"")
    if bare.count(b'"') > 2 * MOST_TEXTS:
        raise HTTPException(400, f"the body holds more than {MOST_TEXTS} texts")
    between = b"".join(bare.split(b'"')[::2])
    if between.count(b":") + between.count(b"[") > MOST_MEMBERS:
        raise HTTPException(400, f"the body's objects have more than {MOST_MEMBERS} members")
    if between.count(b",") >= MOST_VALUES:
        raise HTTPException(400, f"the body holds more than {MOST_VALUES} values")


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
