"""What so many of something add to a step, learned from steps: a line through what was seen.

Of streams it is what a step takes in which they alone go on; of prompt tokens, what they add to
that. Knows seconds and numbers.
"""

from __future__ import annotations

_LEVEL, _SLOPE = 0.3, 0.05
"""Weights of a new measurement: the machine's speed changes sooner than the shape of the line."""
_LEAST_VARIANCE = 0.005
"""Of numbers, in squares of their mean: below, they say nothing about the slope."""


class Cost:
    """Seconds by number. Until numbers have differed, each is taken to cost the same.

    Attributes:
        usual: the number that was usual lately.
    """

    def __init__(self) -> None:
        self._level = self.usual = 0.0
        self._means = (0.0, 0.0)
        self._covariance = self._variance = 0.0
        self._slope: float | None = None

    @property
    def known(self) -> bool:
        return self.usual > 0

    @property
    def share(self) -> float:
        """Seconds for each of the usual number, whatever they take together among them."""
        return self._level / self.usual if self.known else 0.0

    @property
    def each(self) -> float:
        """Seconds that one more takes; 0.0 while nothing is known."""
        return self.share if self._slope is None else min(self._slope, self.share)

    def seconds(self, number: float) -> float:
        """What so many are expected to take."""
        return self._level + self.each * (number - self.usual)

    def learn(self, seconds: float, number: int) -> None:
        """So many, at least one, took this long."""
        if not self.known:
            self._level, self.usual = seconds, float(number)
            self._means = (seconds, float(number))
        self._level += _LEVEL * (seconds - self._level)
        self.usual += _LEVEL * (number - self.usual)
        self._learn_slope(seconds, number)

    def _learn_slope(self, seconds: float, number: int) -> None:
        """By moments that forget."""
        time, usual = self._means
        later, more = seconds - time, number - usual
        self._means = (time + _SLOPE * later, usual + _SLOPE * more)
        self._covariance = (1 - _SLOPE) * (self._covariance + _SLOPE * later * more)
        self._variance = (1 - _SLOPE) * (self._variance + _SLOPE * more * more)
        if self._variance >= _LEAST_VARIANCE * self.usual**2:
            self._slope = max(0.0, self._covariance / self._variance)
