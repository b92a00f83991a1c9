"""What a head gives: a score for every token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """Of R rows.

    Attributes:
        values: fp32 [R, vocabulary].
        tops: what the kernels have noted of the largest of them while they made them, for
            ``Ops.draw``; true while the values are as they were. None if nothing.
        finite: [R] whether a row's values are numbers, if the kernels have looked; see
            ``sampling.sound``.
    """

    values: Tensor
    tops: Tensor | None = None
    finite: Tensor | None = None
