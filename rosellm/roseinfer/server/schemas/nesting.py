"""Which objects a request may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from rosellm.roseinfer.server.schemas.fields import Body


def nested(schema: type[Body]) -> Iterator[type[Body]]:
    """Every kind of object that a request may hold, itself not included."""
    seen: set[type[Body]] = set()
    open = [schema]
    while open:
        for info in open.pop().model_fields.values():
            for kind in _kinds(info.annotation):
                if kind not in seen:
                    seen.add(kind)
                    open.append(kind)
                    yield kind


def _kinds(hint: Any) -> Iterator[type[Body]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint  # type: ignore[misc]
    for part in get_args(hint):
        yield from _kinds(part)
