"""A 3-gram model over token ids: what a language model has to beat.

Interpolated as Witten and Bell do (1991; Chen & Goodman 1999, 2.5): a context that is followed by
many different tokens trusts the shorter context more. It needs no tuning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Context = tuple[int, ...]


class Trigram:
    """Counts of all runs of one, two and three tokens."""

    def __init__(self, texts: Iterable[Sequence[int]], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._runs: Counter[Context] = Counter()
        for ids in texts:
            for length in (1, 2, 3):
                self._runs.update(zip(*(ids[start:] for start in range(length)), strict=False))
        self._followed: Counter[Context] = Counter()
        self._kinds: Counter[Context] = Counter()
        for run, count in self._runs.items():
            self._followed[run[:-1]] += count
            self._kinds[run[:-1]] += 1

    def probability(self, token: int, context: Context) -> float:
        """Of a token behind the two, one or no tokens of a context."""
        shorter = self.probability(token, context[1:]) if context else 1 / self._vocab_size
        seen, kinds = self._followed[context], self._kinds[context]
        if not seen:
            return shorter
        return (self._runs[(*context, token)] + kinds * shorter) / (seen + kinds)

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """Natural logarithms, for every token of a text."""
        return [
            math.log(self.probability(token, tuple(ids[max(0, at - 2) : at])))
            for at, token in enumerate(ids)
        ]
