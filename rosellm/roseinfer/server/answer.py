"""What a ``generate`` call gives: an async iterator of ``Delta``, which aborts what is left of it.

Knows neither the engine nor HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rosellm.roseinfer.server.delta import Delta

if TYPE_CHECKING:
    from rosellm.roseinfer.server.pipeline import Pipeline

LONGEST_TIMER_S = 1e7  # longer ones are not told from none by event loops


class Watcher(Protocol):
    """Sees all that an answer is made of, as it comes."""

    def see(self, item: Delta | Exception) -> None: ...
    def end(self) -> None:
        """Nothing more will come."""


class Answer:
    """The deltas of one ``generate`` call. Close it: what is unfinished then is aborted."""

    def __init__(self, pipeline: Pipeline, choices: int, watchers: Sequence[Watcher] = ()) -> None:
        self.ids: list[int] = []
        self.choices = choices
        self._pipeline = pipeline
        self._unfinished = choices
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._peeked: Delta | None = None
        self._watchers = watchers
        self._timer: asyncio.TimerHandle | None = None

    def expires(self, deadline: float | None) -> None:
        """End it with an error at this time, by ``time.monotonic``."""
        if deadline is not None:
            delay = min(max(0.0, deadline - time.monotonic()), LONGEST_TIMER_S)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, self._pipeline.expire, self)

    @property
    def unfinished(self) -> int:
        """Choices whose end has not been taken from here."""
        return self._unfinished

    def put(self, item: Delta | Exception) -> None:
        self._queue.put_nowait(item)
        for watcher in self._watchers:
            watcher.see(item)

    async def begin(self) -> None:
        """Wait for the first news, so that an error known by then can be raised here."""
        try:
            self._peeked = await self.__anext__()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pipeline.drop(self.ids)
        watchers, self._watchers = self._watchers, ()
        for watcher in watchers:
            watcher.end()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Delta:
        if self._peeked is not None:
            delta, self._peeked = self._peeked, None
            return delta
        if not self._unfinished:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._unfinished -= item.finish is not None
        return item

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()
