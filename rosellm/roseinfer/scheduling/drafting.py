"""Drafts behind the known tokens of a step, in what it has left over.

Nobody waits, and nobody is preempted, for tokens that may be wrong. What is computed for those
that are lies in slots that are written again.
"""

from __future__ import annotations

from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.scheduling.limits import Limits
from rosellm.roseinfer.scheduling.sequence import Sequence
from rosellm.roseinfer.scheduling.sketch import Sketch


def add_drafts(sketch: Sketch, cache: CacheManager, limits: Limits, num_running: int) -> None:
    """Put drafts behind known tokens, in whatever tokens, rows and blocks are left over.

    A step of drafts has no more rows than one without: each takes logits of a whole vocabulary.
    A block stays for everyone who runs, and others keep what they have cached.
    """
    rows = max(limits.sequences, 1 + limits.draft) - len(sketch.known)
    left = min(sketch.budget, rows)
    wishes = [(s, _wish(s, left)) for s, n in sketch.known.items() if n == s.pending]
    wishes = sorted((wish for wish in wishes if wish[1]), key=lambda wish: len(wish[1]))
    for index, (sequence, wish) in enumerate(wishes):
        draft = wish[: left // (len(wishes) - index)]
        length = sequence.num_scheduled + sequence.pending + len(draft)
        if draft and cache.grow(sequence.kv, length, num_running, sparing=True):
            sketch.drafts[sequence] = draft
            left -= len(draft)


def _wish(sequence: Sequence, limit: int) -> tuple[int, ...]:
    """What a sequence would have drafted. Its last token needs no draft after it.

    A spare token's score is told for the next position alone, so none is drafted with those.
    """
    if sequence.drafter is None or not sequence.samples or sequence.tells_spares:
        return ()
    return sequence.drafter.propose(sequence.tokens, min(limit, sequence.room - 1))
