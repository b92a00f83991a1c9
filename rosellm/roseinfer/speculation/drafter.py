"""What one sequence drafts: how much, and from where.

A draft is verified by the step that computes it: a drafted token stays if it is the one that its
position samples anyway. So a bad draft costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rosellm.roseinfer.speculation.ngram import Lookup
from rosellm.roseinfer.speculation.prediction import Alignment

_FIRST = 4
_LEAST = 2


class Drafter:
    """Proposes the tokens after a sequence's own. Changes only in ``follow`` and ``learn``.

    Args:
        prediction: what the answer is predicted to be; may be empty.
        lookup: whether to look for repetitions where the prediction says nothing.
        most: tokens in one draft.
    """

    def __init__(self, prediction: Sequence[int], *, lookup: bool, most: int) -> None:
        self._alignment = Alignment(prediction) if prediction else None
        self._lookup = Lookup() if lookup else None
        self._most = most
        self._length = min(_FIRST, most)

    def propose(self, tokens: Sequence[int], limit: int) -> tuple[int, ...]:
        """A draft of what follows ``tokens``, all of the sequence's; at most ``limit`` long."""
        length = min(limit, self._length)
        if length < 1:
            return ()
        draft = self._alignment.propose(length) if self._alignment else ()
        if not draft and self._lookup:
            draft = self._lookup.propose(tokens, length)
        return draft

    def follow(self, answer: Sequence[int]) -> None:
        """Take the answer's next tokens."""
        if self._alignment:
            self._alignment.follow(answer)

    def learn(self, drafted: int, accepted: int) -> None:
        """Draft twice as much after a draft that was right, about as much as was right if not."""
        if drafted:
            length = 2 * self._length if accepted == drafted else max(_LEAST, accepted + 1)
            self._length = min(self._most, length)
