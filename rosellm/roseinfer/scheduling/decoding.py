"""What a step takes in which streams alone go on, learned from steps: a line through what was seen.

Knows seconds and numbers of streams.
"""

from __future__ import annotations

_LEVEL, _SLOPE = 0.3, 0.05
"""Weights of a new measurement: the machine's speed changes sooner than the shape of the line."""
_LEAST_VARIANCE = 0.005
"""Of numbers of streams, in squares of their mean: below, they say nothing about the slope."""


class Decoding:
    """Seconds by the number of streams.

    Until numbers of streams have differed, every stream is taken to cost the same.
    """

    def __init__(self) -> None:
        self._level = self._streams = 0.0
        self._means = (0.0, 0.0)
        self._covariance = self._variance = 0.0
        self._slope: float | None = None

    @property
    def known(self) -> bool:
        return self._streams > 0

    @property
    def each(self) -> float:
        """Seconds that one more stream takes; 0.0 while nothing is known."""
        steepest = self._level / self._streams if self.known else 0.0
        return steepest if self._slope is None else min(self._slope, steepest)

    def seconds(self, streams: int) -> float:
        """What a step of so many is expected to take."""
        return self._level + self.each * (streams - self._streams)

    def learn(self, seconds: float, streams: int) -> None:
        """A step of at least one stream took this long."""
        if not self.known:
            self._level, self._streams = seconds, float(streams)
            self._means = (seconds, float(streams))
        self._level += _LEVEL * (seconds - self._level)
        self._streams += _LEVEL * (streams - self._streams)
        self._learn_slope(seconds, streams)

    def _learn_slope(self, seconds: float, streams: int) -> None:
        """By moments that forget."""
        time, number = self._means
        later, more = seconds - time, streams - number
        self._means = (time + _SLOPE * later, number + _SLOPE * more)
        self._covariance = (1 - _SLOPE) * (self._covariance + _SLOPE * later * more)
        self._variance = (1 - _SLOPE) * (self._variance + _SLOPE * more * more)
        if self._variance >= _LEAST_VARIANCE * self._streams**2:
            self._slope = max(0.0, self._covariance / self._variance)
