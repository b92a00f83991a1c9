"""How many tokens the engine's steps have computed, counted as a Prometheus histogram."""

from __future__ import annotations

from bisect import bisect_left

from rosellm.roseinfer.messages import Stats

BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class StepSizes:
    """Counts of steps by their size. Seen after each step, which is often: this is all it does.

    Attributes:
        tokens: of all of them together.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._counts = [0] * (len(BOUNDS) + 1)
        self._step = 0

    def see(self, stats: Stats) -> None:
        """The state after a step; of an engine that was started again, steps are numbered anew."""
        if stats.steps != self._step and stats.batched_tokens:
            self.tokens += stats.batched_tokens
            self._counts[bisect_left(BOUNDS, stats.batched_tokens)] += 1
        self._step = stats.steps

    def buckets(self) -> list[tuple[str, float]]:
        """Bounds, and how many steps were at most so large."""
        found, steps = [], 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._counts, strict=True):
            steps += count
            found.append((f"{float(bound)}" if bound != "+Inf" else bound, float(steps)))
        return found
