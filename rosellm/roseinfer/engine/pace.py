"""How long steps take, so that one that hangs can be told from one that is merely large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAST_S = 5.0
"""No step is stuck before."""

_TIMES = 10.0
_UNKNOWN_S = 60.0  # what a first step is expected to take: it warms everything up


class Pace:
    """The steps of one engine. ``stuck`` may be read from another thread.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slowest: dict[int, float] = {}  # by size, doubling
        self._present: tuple[float, float] | None = None  # since when, and how long it may take

    @contextmanager
    def step(self, tokens: int) -> Iterator[None]:
        """Around a step of so many tokens."""
        begun = self._clock()
        self._present = begun, max(LEAST_S, _TIMES * self.expected_s(tokens))
        try:
            yield
        finally:
            self._present = None
            size = tokens.bit_length()
            self._slowest[size] = max(self._slowest.get(size, 0.0), self._clock() - begun)

    @property
    def stuck(self) -> bool:
        """Whether the present step has taken ten times as long as the slowest of its size."""
        present = self._present
        return present is not None and self._clock() - present[0] > present[1]

    def expected_s(self, tokens: int) -> float:
        """Seconds that such a step takes: as the slowest of its size so far, or of the nearest
        smaller size, as if every token took as long as there."""
        size = tokens.bit_length()
        smaller = [known for known in self._slowest if known <= size]
        if not smaller:
            return _UNKNOWN_S
        nearest = max(smaller)
        return self._slowest[nearest] * float(2 ** (size - nearest))
