"""Prompt lookup: what followed the last time the same few tokens stood here.

After https://github.com/apoorvumang/prompt-lookup-decoding. Good for answers that repeat their
prompt or themselves, and for nothing else; it costs no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from rosellm.roseinfer.speculation.packed import Packed

_LONGEST = 4
_SHORTEST = 2
REACH = 16384
"""Tokens to look back over: some 0.1 ms."""


class Lookup:
    """One sequence's, prompt and answer."""

    def __init__(self) -> None:
        self._known = Packed()

    def propose(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """What may follow ``tokens``, which are those of the last call and more behind them.

        The longest run of latest tokens that has occurred before decides, and of its occurrences
        the last. What it repeats may reach into the draft itself.
        """
        self._known.extend(tokens[len(self._known) :])
        count = len(tokens)
        for size in range(min(_LONGEST, count - 1), _SHORTEST - 1, -1):
            run = tokens[count - size :]
            at = self._known.find_last(run, max(0, count - REACH), count - 1)
            if at is not None:
                period = tuple(tokens[at + size :])
                return (period * -(-limit // len(period)))[:limit]
        return ()
