"""How many prompt tokens a step may compute while streams wait for their next token.

The time of a step is predicted from what steps took: that of streams alone, and what prompt tokens
added to it, of which a part comes with any number of them (``cost.py``): all that was computed of
the prompt before has to be read. The number of prompt tokens is bounded by what the time allows, so
a prompt of any length comes in chunks between which the streams go on. A chunk changes no bits.

Three limits:

* a target for the time between tokens, if there is one. Until steps are measured the chunks are
  small then, and they grow step by step;
* without a target, where one tenant's prompts are computed beside another's streams: a step may
  become ``stretch`` times as long as the streams of those that ask for little would take alone
  (``neighbours.py``); if all ask for much, longer by ``NEIGHBOURS_SHARE``;
* without a target, within a tenant: prompts come first, but make a step no longer than by
  ``PROMPTS_S``, or twice what comes with any number of them. A GPU computes thousands of tokens in
  that time, so this is for CPUs, where a chunk of some tens of tokens is as fast for each token as
  one of hundreds.

Knows seconds and numbers of tokens, neither sequences nor tenants.
"""

from __future__ import annotations

from rosellm.roseinfer.scheduling.cost import Cost

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
_UNHURT, _HURT = 1.01, 0.75
"""What a step does to the margin: one within the target while none was beyond it, and the first one
that is."""
_CLOSER, _FURTHER = 1.0005, 0.9
"""The same from then on. In balance about one step in two hundred is beyond, and clients, who see
more delays than steps, find one in a hundred late."""
REMEASURE = 32
"""Steps with prompts after which one goes without, to see what decoding alone takes; where steps
are planned ahead, the next one is planned before that is known, and goes without as well."""
_GROWTH = 2.0
"""Times the usual chunk that one may be: what is far from all that was seen is not known."""
_LEAST_EACH = 0.25
"""Of a prompt token's share in its chunk's time, what one more costs at least: a line through times
that vary may be flat by chance."""


class Chunks:
    """Learns what steps cost.

    Args:
        target: seconds between the tokens of a stream, or None.
        stretch: see ``Neighbours``.
        decoding: what streams alone take; it learns here.
    """

    def __init__(self, target: float | None, stretch: float, decoding: Cost) -> None:
        self._target = target
        self._stretch = stretch
        self._decoding = decoding
        self._prompts = Cost()
        self._rough = True
        self._margin = FIRST_MARGIN
        self._closer, self._further = _UNHURT, _HURT
        self._since = 0

    def limit(self, budget: int, streams: int, spared: int | None) -> int:
        """Prompt tokens of a step with streams that wait.

        Args:
            budget: what there is room for.
            streams: of the step.
            spared: of tenants that ask for little; None if all streams and prompts are of one.
        """
        if self._target is None and spared is None:
            if not self._prompts.known:
                return budget
            return max(
                min(budget, LEAST_CHUNK), self._within(max(PROMPTS_S, 2 * self._fixed), budget)
            )
        if not self._decoding.known or self._since >= REMEASURE:
            return 0
        allowed = self._allowed(streams, spared or 0)
        if allowed is None or not self._prompts.known:
            return min(budget, LEAST_CHUNK)
        chunk = min(self._within(allowed, budget), int(_GROWTH * self._prompts.usual))
        return min(budget, max(LEAST_SPARING, chunk))

    def learn(self, seconds: float, streams: int, prompt_tokens: int) -> None:
        """A step with so many streams and prompt tokens took this long."""
        if not prompt_tokens:
            if not streams:
                return
            self._decoding.learn(seconds, streams)
            self._since = 0
            return
        if streams:
            self._since += 1
            if self._target is not None:
                self._learn_margin(self._target, seconds, prompt_tokens)
        added = max(0.0, seconds - self._decoding.seconds(streams))
        self._learn_prompts(added, prompt_tokens)

    def _learn_prompts(self, added: float, tokens: int) -> None:
        """What was learned before it was known what a step takes without prompts counts for nothing
        as soon as that is known."""
        if self._rough:
            self._prompts, self._rough = Cost(), not self._decoding.known
        self._prompts.learn(added, tokens)

    def _learn_margin(self, target: float, seconds: float, tokens: int) -> None:
        """A step that would have been late without its prompts says nothing of them."""
        if seconds <= target:
            self._margin = min(MARGIN, self._margin * self._closer)
        elif seconds - self._prompts.seconds(tokens) <= target:
            self._margin = max(LEAST_MARGIN, self._margin * self._further)
            self._closer, self._further = _CLOSER, _FURTHER

    def _allowed(self, streams: int, spared: int) -> float | None:
        """Seconds for prompts; None if there is no time for anything."""
        decoding = self._decoding.seconds(streams)
        if self._target is not None:
            left = self._target - decoding
            return self._margin * left if left > 0 else None
        if spared:
            return self._stretch * self._decoding.seconds(spared) - decoding
        return NEIGHBOURS_SHARE * decoding

    def _within(self, seconds: float, budget: int) -> int:
        """Prompt tokens that take no longer."""
        usual, each = self._prompts.usual, self._each
        more = seconds - self._prompts.seconds(usual)
        if more >= each * (budget - usual):
            return budget
        return max(0, int(usual + more / each)) if each else 0

    @property
    def _each(self) -> float:
        """Seconds that one more prompt token takes."""
        return max(self._prompts.each, _LEAST_EACH * self._prompts.share)

    @property
    def _fixed(self) -> float:
        """Seconds that prompt tokens take however few they are."""
        return self._prompts.seconds(self._prompts.usual) - self._each * self._prompts.usual
