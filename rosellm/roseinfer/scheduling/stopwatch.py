"""How long steps take, where several are on their way: from the end of the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Stopwatch:
    """Of plans in the order in which they were made.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: deque[float] = deque()
        self._ended = clock()

    def begin(self) -> None:
        """A plan is on its way."""
        self._begun.append(self._clock())

    def withdraw(self) -> None:
        """The newest of them is not any more."""
        self._begun.pop()

    def end(self) -> float:
        """The oldest has come back. Returns the seconds that it took."""
        now = self._clock()
        began = max(self._begun.popleft(), self._ended)
        self._ended = now
        return now - began
