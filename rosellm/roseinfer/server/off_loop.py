"""Work that could hold up the event loop is done in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

INLINE = 2048  # characters or tokens: a millisecond or two at most

T = TypeVar("T")


async def off_loop(size: int, work: Callable[[], T], *, inline: int = INLINE) -> T:
    """The result of ``work``, done here if it is small.

    Args:
        size: roughly how many characters or tokens the work touches.
        inline: what is small.
    """
    if size <= inline:
        return work()
    return await asyncio.to_thread(work)
