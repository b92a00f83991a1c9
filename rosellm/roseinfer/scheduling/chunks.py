"""How many prompt tokens a step may compute while streams wait for their next token.

The time of a step is predicted from what steps took: that of streams alone (``decoding.py``), and
what each prompt token added to it. The number of prompt tokens is bounded by what the time allows,
so a prompt of any length comes in chunks between which the streams go on. A chunk changes no bits.

Three limits:

* a target for the time between tokens, if there is one. Until steps are measured the chunks are
  small then, and none is more than twice as large as one that was;
* without a target, where one tenant's prompts are computed beside another's streams: a step may
  become ``stretch`` times as long as the streams of those that ask for little would take alone
  (``neighbours.py``); if all ask for much, longer by ``NEIGHBOURS_SHARE``;
* without a target, within a tenant: prompts come first, but make a step no longer than by
  ``PROMPTS_S``. A GPU computes thousands of tokens in that time, so this is for CPUs, where a chunk
  of some tens of tokens is as fast for each token as one of hundreds.

Knows seconds and numbers of tokens, neither sequences nor tenants.
"""

from __future__ import annotations

from rosellm.roseinfer.scheduling.decoding import Decoding

LEAST_CHUNK = 16
"""Tokens of a step that prompts get where nothing is measured yet, or the target is less than what
streams take alone: no slowness may keep prompts out."""
LEAST_SPARING = 2
"""The same where it is known how streams can be spared; of single tokens nothing is learned."""
NEIGHBOURS_SHARE = 0.5
PROMPTS_S = 0.25
FIRST_MARGIN, MARGIN, LEAST_MARGIN = 0.5, 0.8, 0.1
"""The part of what the target leaves that is planned for, at first, at most and at least: what is
predicted is not what happens."""
_CLOSER, _FURTHER = 1.0005, 0.9
"""What a step within the target does to the margin, and one beyond it: in balance about one step in
two hundred is beyond, and clients, who see more delays than steps, find one in a hundred late."""
REMEASURE = 32
"""Steps with prompts after which one goes without, to see what decoding alone takes; where steps
are planned ahead, the next one is planned before that is known, and goes without as well."""
_FASTER, _SLOWER = 0.1, 0.5
"""Weights of a new measurement: what is slower than expected counts at once."""


class Chunks:
    """Learns what steps cost.

    Args:
        target: seconds between the tokens of a stream, or None.
        stretch: see ``Neighbours``.
        decoding: what streams alone take; it learns here.
    """

    def __init__(self, target: float | None, stretch: float, decoding: Decoding) -> None:
        self._target = target
        self._stretch = stretch
        self._decoding = decoding
        self._usual = (0.0, 0.0)
        self._rough = True
        self._margin = FIRST_MARGIN
        self._largest = 0
        self._since = 0

    def limit(self, budget: int, streams: int, spared: int | None) -> int:
        """Prompt tokens of a step with streams that wait.

        Args:
            budget: what there is room for.
            streams: of the step.
            spared: of tenants that ask for little; None if all streams and prompts are of one.
        """
        if self._target is None and spared is None:
            chunk = budget if self._each is None else self._within(PROMPTS_S, self._each, budget)
            return min(budget, max(LEAST_CHUNK, chunk))
        if not self._decoding.known or self._since >= REMEASURE:
            return 0
        if self._each is None:
            return min(budget, LEAST_CHUNK)
        allowed = self._allowed(streams, spared or 0)
        if allowed is None:
            return min(budget, LEAST_CHUNK)
        chunk = self._within(allowed, self._each, budget)
        return min(budget, max(LEAST_SPARING, min(chunk, 2 * self._largest)))

    @property
    def _each(self) -> float | None:
        """Seconds that a prompt token adds; None while nothing is known."""
        seconds, tokens = self._usual
        return seconds / tokens if tokens else None

    def learn(self, seconds: float, streams: int, prompt_tokens: int) -> None:
        """A step with so many streams and prompt tokens took this long."""
        if not prompt_tokens:
            if not streams:
                return
            self._decoding.learn(seconds, streams)
            self._since = 0
        elif streams:
            self._since += 1
            self._largest = max(self._largest, prompt_tokens)
            self._learn_prompts(seconds - self._decoding.seconds(streams), prompt_tokens)
            if self._target is not None:
                change = _CLOSER if seconds <= self._target else _FURTHER
                self._margin = min(MARGIN, max(LEAST_MARGIN, self._margin * change))
        else:
            self._learn_prompts(seconds - self._decoding.seconds(0), prompt_tokens)

    def _learn_prompts(self, seconds: float, tokens: int) -> None:
        """What they added to a step: means of both that forget, so that the end of a prompt counts
        for as little as it is. What was learned before it was known what a step takes without
        prompts counts for nothing as soon as that is known."""
        if self._rough:
            self._usual, self._rough = (max(0.0, seconds), float(tokens)), not self._decoding.known
        usual_seconds, usual_tokens = self._usual
        weight = _SLOWER if seconds * usual_tokens > usual_seconds * tokens else _FASTER
        self._usual = (
            usual_seconds + weight * (max(0.0, seconds) - usual_seconds),
            usual_tokens + weight * (tokens - usual_tokens),
        )

    def _allowed(self, streams: int, spared: int) -> float | None:
        """Seconds for prompts; None if there is no time for anything."""
        decoding = self._decoding.seconds(streams)
        if self._target is not None:
            left = self._target - decoding
            return self._margin * left if left > 0 else None
        if spared:
            return self._stretch * self._decoding.seconds(spared) - decoding
        return NEIGHBOURS_SHARE * decoding

    @staticmethod
    def _within(seconds: float, each: float, budget: int) -> int:
        if seconds <= 0:
            return 0
        return budget if seconds >= each * budget else int(seconds / each)
