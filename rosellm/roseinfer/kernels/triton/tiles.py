"""Which tile computes a product: as data. Only ``parts`` decides about bits. No Triton here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

NARROWEST = 64
"""Rows of the weight in the smallest tile: what wgmma takes."""

_MOST_PARTS = 8
_SHORTEST_PART = 512


@dataclass(frozen=True)
class Tile:
    """Of one program.

    Attributes:
        columns: of the result, rows of the weight.
        rows: of the result, tokens.
        warps, stages: of the program, and of its pipeline.
        group: tiles of the weight that stay in the L2 cache while rows go by.
        sums: accumulators for which registers suffice.
        narrow_sums: the same on a card without wgmma, which has the weight in registers, too.
    """

    columns: int
    rows: int
    warps: int
    stages: int
    group: int = 8
    sums: int = 2
    narrow_sums: int = 2


BLOCK_K = 64
"""Columns of K in a step of plain weights, for every tile alike."""

TILES = (
    Tile(128, 256, warps=8, stages=3, sums=1, narrow_sums=1),
    Tile(128, 128, warps=8, stages=3),
    Tile(64, 128, warps=4, stages=4),
    Tile(64, 64, warps=4, stages=4),
    Tile(64, 32, warps=4, stages=5),
    Tile(64, 16, warps=4, stages=6),
)
"""Of two-byte types, the largest first."""

WIDE_BLOCK_K = 32

WIDE_TILES = (
    Tile(64, 64, warps=4, stages=2),
    Tile(64, 16, warps=4, stages=2),
)
"""Of fp32, which tensor cores do not multiply."""

PACKED_BLOCK_K = 128
"""Columns of K in a step of quantised weights, for every tile alike."""

PACKED_TILES = (
    Tile(128, 128, warps=8, stages=2, narrow_sums=1),
    Tile(64, 128, warps=4, stages=3, sums=1, narrow_sums=1),
    Tile(64, 64, warps=4, stages=3),
    Tile(64, 32, warps=4, stages=4),
    Tile(64, 16, warps=4, stages=4),
)
"""Of quantised weights, whose numbers are made in registers."""


@dataclass(frozen=True)
class Card:
    """What of a device the choice depends on.

    Attributes:
        processors: multiprocessors.
        shared: bytes of shared memory that a program may have.
        wgmma: whether it multiplies by Hopper's instruction.
    """

    processors: int
    shared: int
    wgmma: bool = True

    def holds(self, tile: Tile, sums: int) -> bool:
        """Whether a thread's registers suffice for so many accumulators."""
        return sums <= (tile.sums if self.wgmma else tile.narrow_sums)


def parts(columns: int, k: int, block_k: int, processors: int) -> tuple[int, int]:
    """Into how many parts K is cut, and how long each is: so that a single row keeps the card busy.

    Depends on nothing but the weight and the card: whatever the batch is, sums are the same.

    Args:
        columns: of the result.
        block_k: a part is a multiple of it.
    """
    tiles = -(-columns // NARROWEST)
    count = 1
    while (
        count < _MOST_PARTS
        and tiles * count < 2 * processors
        and k // (2 * count) >= _SHORTEST_PART
    ):
        count *= 2
    size = -(-k // (count * block_k)) * block_k
    return -(-k // size), size


def choose(
    tiles: Sequence[Tile], rows: int, columns: int, parts: int, gated: bool, card: Card, step: int
) -> Tile:
    """The largest tile that wastes little and of which there are enough to keep the card busy.

    Args:
        rows, columns: of the result.
        parts: of K, if other programs may compute them.
        gated: whether there are two products, of which one is the other one's gate.
        step: bytes of a row or column in one step of the pipeline.
    """
    fitted = fitting(tiles, parts, gated, card, step)
    useful = [tile for tile in fitted if tile.rows < 2 * max(rows, 9)]
    for tile in useful:
        if count(tile, rows, columns) * parts >= card.processors:
            return tile
    return next((tile for tile in useful if tile.rows <= 64), useful[-1])


def fitting(tiles: Sequence[Tile], parts: int, gated: bool, card: Card, step: int) -> list[Tile]:
    """All that a card can have for such a product, see ``choose``."""
    sums = 2 if gated or parts > 1 else 1
    fitted = (_fitted(tile, gated, step, card.shared) for tile in tiles if card.holds(tile, sums))
    return [tile for tile in fitted if tile is not None]


def count(tile: Tile, rows: int, columns: int) -> int:
    """How many tiles a result has."""
    return -(-rows // tile.rows) * -(-columns // tile.columns)


def _fitted(tile: Tile, gated: bool, step: int, shared: int) -> Tile | None:
    """The tile with no more stages than memory has room for, or None.

    A gate's product loads two tiles of the weight in each stage.
    """
    stage = (tile.columns * (1 + gated) + tile.rows) * step
    stages = min(tile.stages, shared // stage)
    return replace(tile, stages=stages) if stages else None
