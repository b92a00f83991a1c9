"""A length in tokens that is fixed (``128``) or drawn from a range (``64:256``)."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """Whole numbers from ``low`` to ``high``, both included, all equally likely."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        return source.randint(self.low, self.high)

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def lengths(text: str) -> Lengths:
    """Parse ``N`` or ``LOW:HIGH``; the complaint is argparse's."""
    return _parse(text, least=1)


def id_range(text: str) -> Lengths:
    """Parse a range of token ids, which may start at 0."""
    return _parse(text, least=0)


def _parse(text: str, least: int) -> Lengths:
    low, colon, high = text.partition(":")
    try:
        made = Lengths(int(low), int(high if colon else low))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor LOW:HIGH") from None
    if not least <= made.low <= made.high:
        raise argparse.ArgumentTypeError(f"{text!r} must rise, and start at {least} or more")
    return made
