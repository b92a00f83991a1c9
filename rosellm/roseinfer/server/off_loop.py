"""Work that could hold up the event loop is done in a thread, or in slices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

INLINE = 2048  # characters or tokens: a millisecond or two at most

SLICE_S = 0.005

T = TypeVar("T")


class Slices:
    """Work that has to be done on the loop; between its slices others have their turn."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SLICE_S

    async def pause(self) -> None:
        """Called often; does nothing until the slice is used up."""
        if time.monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + SLICE_S


def weight(*values: Any, most: int = INLINE) -> int:
    """Roughly how many characters there are in values of any kind, never more than written as JSON.

    Args:
        most: beyond it, any number does.
    """
    open, seen = list(values), 0
    while open and seen <= most:
        each = open.pop()
        seen += len(each) if isinstance(each, str) else 1
        if isinstance(each, BaseModel):
            open += vars(each).values()
        elif isinstance(each, Mapping):
            open += (*each.keys(), *each.values())
        elif isinstance(each, list | tuple):
            open += each
    return seen


async def off_loop(size: int, work: Callable[[], T], *, inline: int = INLINE) -> T:
    """The result of ``work``, done here if it is small.

    Args:
        size: roughly how many characters or tokens the work touches.
        inline: what is small.
    """
    if size <= inline:
        return work()
    return await asyncio.to_thread(work)
