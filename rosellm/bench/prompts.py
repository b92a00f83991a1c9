"""Prompts of a wanted length: token ids where the endpoint takes them, else words.

How many tokens a word is only the server's tokenizer knows, so words are calibrated: two
prompts are sent first and the server's own count of their tokens gives a straight line.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from rosellm.bench.lengths import Lengths
from rosellm.bench.workload import Job, Piece

# All of four letters and all common: one token each where a vocabulary is large, and equally
# many where it is small. So the line that calibration finds is nearly exact.
TEXT = (
    "time year work life hand part case week home room area word fact side kind head "
    "hour game line city name team idea body back face door book food road tree fish "
    "bird moon rain wind sand gold rose leaf hill lake farm ship song star milk salt"
)
WORDS = TEXT.split()

PROBES = (Piece("probe", 8), Piece("probe, longer", 40))
"""Prompts of as many words, sent to calibrate. Small enough for any context."""


class PromptMaker(Protocol):
    def __call__(self, job: Job) -> str | list[int]: ...


@dataclass(frozen=True)
class TokenIds:
    """Prompts of random token ids: exactly as long as wanted."""

    ids: Lengths

    def __call__(self, job: Job) -> list[int]:
        population = range(self.ids.low, self.ids.high + 1)
        return [
            id
            for piece in job.pieces
            for id in random.Random(piece.seed).choices(population, k=piece.tokens)
        ]


@dataclass(frozen=True)
class Words:
    """Prompts of random words.

    Attributes:
        per_word: tokens that a word adds.
        overhead: tokens that the server adds to any prompt (bos, chat template).
    """

    per_word: float
    overhead: float

    @classmethod
    def calibrated(cls, counts: Iterable[int]) -> Words:
        """From the server's token counts of ``PROBES``."""
        short, long = counts
        per_word = (long - short) / (PROBES[1].tokens - PROBES[0].tokens)
        per_word = max(per_word, 0.1)  # a server that counts strangely must not hang us
        return cls(per_word, short - PROBES[0].tokens * per_word)

    def __call__(self, job: Job) -> str:
        words: list[str] = []
        tokens = 0
        for piece in job.pieces:
            tokens += piece.tokens
            last = piece is job.pieces[-1]
            target = (tokens - (self.overhead if last else 0)) / self.per_word
            words += _draw(piece.seed, max(round(target), 1) - len(words))
        return " ".join(words)


def probe_text(piece: Piece) -> str:
    return " ".join(_draw(piece.seed, piece.tokens))


def _draw(seed: str, count: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=max(count, 0))
