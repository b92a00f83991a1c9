"""What is known of one HTTP request beside its typed body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request


@dataclass(frozen=True)
class Call:
    """
    Attributes:
        path: where it was posted to.
        body: its JSON, as it was sent.
        warnings: a sentence for each field that was ignored, see ``--unknown-parameters``.
    """

    path: str
    body: Any
    warnings: tuple[str, ...] = ()


async def _called(request: Request) -> Call:  # async: FastAPI runs others in a thread
    state = request.state
    return Call(request.url.path, getattr(state, "sent", None), getattr(state, "warnings", ()))


Called = Annotated[Call, Depends(_called)]
