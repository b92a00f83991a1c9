"""How late the event loop is: what runs on it in one go makes everyone else wait as long.

A timer asks to be called every few milliseconds and sees by how much that comes too late. A stretch
in which nothing else runs is seen short by up to the timer's period.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PERIOD_S = 0.01


class LoopLag:
    """Measures the event loop that it is started on.

    Args:
        observe: given each lag, in seconds.
    """

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    @contextmanager
    def measured(self) -> Iterator[None]:
        """As long as this lasts."""
        self._start(asyncio.get_running_loop())
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop's own time, which uvloop reads once an iteration.
        self._due = time.monotonic() + PERIOD_S
        self._timer = loop.call_later(PERIOD_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._observe(max(0.0, time.monotonic() - self._due))
        self._start(loop)
