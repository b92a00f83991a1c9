"""Which requests have run out of time. Knows ids and a clock's readings, and nothing else."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator


class Deadlines:
    """Ids by the time at which they expire."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []

    def add(self, id: int, deadline: float) -> None:
        heapq.heappush(self._heap, (deadline, id))

    def expired(self, now: float) -> Iterator[int]:
        """Take out the ids whose deadline has come, the earliest first."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]

    def sweep(self, open_ids: int, is_open: Callable[[int], bool]) -> None:
        """Let go of ids that have ended when most are such: their deadlines may be far away."""
        if len(self._heap) > 2 * open_ids + 64:
            self._heap = [entry for entry in self._heap if is_open(entry[1])]
            heapq.heapify(self._heap)
