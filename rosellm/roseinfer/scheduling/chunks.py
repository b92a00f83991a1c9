"""How many prompt tokens a step may compute while streams wait for their next token.

The time of a step is predicted from what steps took: that of decoding alone, and what each prompt
token added to it. The number of prompt tokens is bounded by what the time allows, so a prompt of
any length comes in chunks between which the streams go on. A chunk changes no bits.

Three limits:

* a target for the time between tokens, if there is one. Until steps are measured the chunks are
  small then, and none is more than twice as large as one that was;
* without a target, where one tenant's prompts are computed beside another's streams: prompts may
  make a step longer by ``NEIGHBOURS_SHARE``, measured in the same way;
* without a target, within a tenant: prompts come first, but make a step no longer than by
  ``PROMPTS_S``. A GPU computes thousands of tokens in that time, so this is for CPUs, where a chunk
  of some tens of tokens is as fast for each token as one of hundreds.

Knows seconds and numbers of tokens, neither sequences nor tenants.
"""

from __future__ import annotations

LEAST_CHUNK = 16
"""Prompts always get so many tokens of a step, or no stream's slowness would ever let them in."""
NEIGHBOURS_SHARE = 0.5
PROMPTS_S = 0.25
MARGIN, LEAST_MARGIN = 0.9, 0.2
"""The part of the target that is planned for: what is predicted is not what happens."""
_CLOSER, _FURTHER = 1.001, 0.9
"""What a step within the target does to the margin, and one beyond it: in balance about one step in
a hundred is beyond."""
REMEASURE = 32
"""Steps with prompts after which one goes without, to see what decoding alone takes; where steps
are planned ahead, the next one is planned before that is known, and goes without as well."""
_FASTER, _SLOWER, _DECODING = 0.1, 0.5, 0.3
"""Weights of a new measurement: what is slower than expected counts at once."""


class Chunks:
    """Learns what steps cost.

    Args:
        target: seconds between the tokens of a stream, or None.
    """

    def __init__(self, target: float | None) -> None:
        self._target = target
        self._decoding: float | None = None
        self._each: float | None = None
        self._margin = MARGIN
        self._largest = 0
        self._since = 0

    def limit(self, budget: int, *, neighbours: bool) -> int:
        """Prompt tokens of a step with streams that wait.

        Args:
            budget: what there is room for.
            neighbours: whether prompts and streams belong to several tenants.
        """
        if self._target is None and not neighbours:
            return budget if self._each is None else self._within(PROMPTS_S, self._each, budget)
        if self._decoding is None or self._since >= REMEASURE:
            return 0
        if self._each is None:
            return min(budget, LEAST_CHUNK)
        chunk = self._within(self._allowed(self._decoding), self._each, budget)
        return min(budget, max(LEAST_CHUNK, min(chunk, 2 * self._largest)))

    def learn(self, seconds: float, streams: int, prompt_tokens: int) -> None:
        """A step with so many streams and prompt tokens took this long."""
        if not prompt_tokens:
            if not streams:
                return
            old = seconds if self._decoding is None else self._decoding
            self._decoding = old + _DECODING * (seconds - old)
            self._since = 0
        elif streams:
            self._since += 1
            self._largest = max(self._largest, prompt_tokens)
            self._learn_prompts(seconds - (self._decoding or 0.0), prompt_tokens)
            if self._target is not None:
                change = _CLOSER if seconds <= self._target else _FURTHER
                self._margin = min(MARGIN, max(LEAST_MARGIN, self._margin * change))
        else:
            self._learn_prompts(seconds, prompt_tokens)

    def _learn_prompts(self, seconds: float, tokens: int) -> None:
        each = max(0.0, seconds) / tokens
        old = each if self._each is None else self._each
        weight = _SLOWER if each > old else _FASTER
        self._each = old + weight * min(1.0, tokens / LEAST_CHUNK) * (each - old)

    def _allowed(self, decoding: float) -> float:
        """Seconds for prompts."""
        if self._target is None:
            return NEIGHBOURS_SHARE * decoding
        return max(0.0, self._margin * self._target - decoding)

    @staticmethod
    def _within(seconds: float, each: float, budget: int) -> int:
        if seconds >= each * budget:
            return budget
        return min(budget, max(LEAST_CHUNK, int(seconds / each)))
