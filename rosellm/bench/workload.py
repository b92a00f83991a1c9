"""What is asked, and when: requests as lengths and arrival times, before any text is made."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rosellm.bench.lengths import Lengths
from rosellm.bench.traces import BLOCK, TraceRow


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt. Pieces of equal seed and length have equal content."""

    seed: str
    tokens: int


@dataclass(frozen=True)
class Job:
    """One request to come.

    Attributes:
        pieces: what the prompt is made of, in order.
        arrival: seconds after the start, or None if it is sent when there is room.
    """

    pieces: tuple[Piece, ...]
    output_tokens: int
    arrival: float | None = None

    @property
    def input_tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


def random_jobs(count: int, inputs: Lengths, outputs: Lengths, seed: int) -> list[Job]:
    """Requests of drawn lengths; no two prompts begin alike."""
    source = random.Random(seed)
    return [
        Job((Piece(f"{seed}/{index}", inputs.draw(source)),), outputs.draw(source))
        for index in range(count)
    ]


def trace_jobs(rows: Iterable[TraceRow], seed: int) -> list[Job]:
    """Requests as they were recorded, with the prefixes they had in common."""
    return [
        Job(_pieces(row, index, seed), row.output_tokens, row.at) for index, row in enumerate(rows)
    ]


def _pieces(row: TraceRow, index: int, seed: int) -> tuple[Piece, ...]:
    if not row.blocks:
        return (Piece(f"{seed}/{index}", row.input_tokens),)
    ends = [*range(BLOCK, row.input_tokens, BLOCK), row.input_tokens]
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return tuple(
        Piece(f"{seed}/block {block}", size) for block, size in zip(row.blocks, sizes, strict=True)
    )


def poisson(jobs: Iterable[Job], rate: float, seed: int) -> list[Job]:
    """Let requests arrive independently of each other, ``rate`` a second on average."""
    source = random.Random(f"arrivals {seed}")
    at, timed = 0.0, []
    for job in jobs:
        timed.append(replace(job, arrival=at))
        at += source.expovariate(rate)
    return timed


def untimed(jobs: Iterable[Job]) -> list[Job]:
    """Forget arrival times: whoever is free takes the next request."""
    return [replace(job, arrival=None) for job in jobs]
