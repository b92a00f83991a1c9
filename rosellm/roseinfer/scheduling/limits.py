"""What a step and a sequence are held to: one object, that all who plan look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Limits:
    """
    Attributes:
        sequences: in one step.
        tokens: in one step; they can become fewer.
        length: tokens at which a sequence ends.
        draft: tokens that one sequence may have drafted in a step.
        whole_prompts: whether a sequence must be computed in one step, as an encoder's.
    """

    sequences: int
    tokens: int
    length: int
    draft: int = 0
    whole_prompts: bool = False
