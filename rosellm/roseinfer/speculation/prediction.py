"""Where an answer stands in the text that was predicted for it.

While the answer is what was predicted, its place moves on with it. After a difference it is looked
for again, by the latest tokens of the answer: the more of them are compared, the further away a
place may be, behind the difference first and then anywhere. Until one is found it is supposed that
one token took another's place.

Knows nothing of drafts, so what it counts depends on the two texts alone and not on how the answer
was computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from rosellm.roseinfer.speculation.packed import Packed

_RUN = 4
_NEAR = {2: 64, 1: 16}
"""How far behind a difference a run of so many tokens is looked for."""
_REACH = 16384
"""How far, before and behind, the longest run is: some 0.1 ms."""


class Alignment:
    """An answer, token by token, against its prediction.

    Attributes:
        accepted: tokens of the prediction that the answer has; each counts once.
    """

    def __init__(self, prediction: Sequence[int]) -> None:
        self._tokens = tuple(prediction)
        self._packed = Packed(prediction)
        self._latest: deque[int] = deque(maxlen=_RUN)
        self._at = 0
        self._streak = 1  # tokens as predicted since the last difference
        self._lost: int | None = None  # where it stood before, until the streak is long enough
        self._met = bytearray(len(self._tokens))
        self.accepted = 0

    @property
    def rejected(self) -> int:
        """Tokens of the prediction that the answer does not have."""
        return len(self._tokens) - self.accepted

    def propose(self, limit: int) -> tuple[int, ...]:
        """What is predicted to come next."""
        return self._tokens[self._at : self._at + limit]

    def follow(self, answer: Iterable[int]) -> None:
        """Take the answer's next tokens."""
        for token in answer:
            self._latest.append(token)
            if self._tokens[self._at : self._at + 1] == (token,):
                self._go_on()
            else:
                self._look()

    def _go_on(self) -> None:
        self.accepted += not self._met[self._at]
        self._met[self._at] = 1
        self._at += 1
        self._streak += 1
        if self._streak >= _RUN:
            self._lost = None

    def _look(self) -> None:
        if self._lost is None:
            self._lost = self._at
        supposed = self._at + 1 if self._streak else len(self._tokens)
        found = self._find(self._lost)
        self._at = min(len(self._tokens), supposed if found is None else found)
        self._streak = 0

    def _find(self, lost: int) -> int | None:
        """The place after the latest tokens, the longest run of them that is anywhere."""
        for size, reach in ((_RUN, _REACH), *_NEAR.items()):
            run = list(self._latest)[-size:]
            if len(run) < size:
                continue
            at = self._packed.find(run, max(0, lost - size + 1), lost + reach)
            if at is None and size == _RUN:
                at = self._packed.find(run, max(0, lost - reach), lost)
            if at is not None:
                return at + size
        return None
