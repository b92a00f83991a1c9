"""How a step's query rows are divided into tiles, and a long past among programs.

Plain numbers on the host, without torch's or triton's knowledge: what a GPU backend copies to
the device once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SPLIT = 512
"""Positions in one split of the past. Fixed: a row's bits depend on it."""

SPLIT_TILES = 4
"""A chunk of more query tiles than this keeps enough programs busy without splits."""

ITEM = 8
"""int32 numbers of an item: sequence, first batch row, its position, positions in the tile, end of
the sequence, first split, split beyond the last, and place of what is to be merged, or -1."""

MERGE = 4
"""int32 numbers of a row to merge: batch row, place of its first part, distance, parts."""

Table = np.ndarray


@dataclass(frozen=True)
class Extent:
    """How much of everything there is.

    Attributes:
        items: programs over the query tiles of one KV head.
        merges: query rows whose splits are merged.
        parts: rows of what splits come to.
        width: blocks in a table.
    """

    items: int
    merges: int
    parts: int
    width: int


@dataclass(frozen=True)
class TiledStep:
    """One step's sequences, int32 but for the slots.

    Attributes:
        parts: rows of what splits come to.
        items: [items, ITEM].
        merges: [merges, MERGE].
        tables: [sequences, width] block tables; only blocks that are seen are looked at.
        slots: [tokens] int64, where each token's key and value belong.
    """

    parts: int
    items: Table
    merges: Table
    tables: Table
    slots: Table


@dataclass(frozen=True)
class _Tile:
    """One query tile: as an item has it, and the splits that it sees."""

    sequence: int
    batch_row: int
    position: int
    count: int
    end: int
    first: int
    last: int
    divided: bool


def tile_step(
    starts: Sequence[int],
    lengths: Sequence[int],
    tables: Sequence[Sequence[int]],
    block_size: int,
    height: int,
    window: int | None,
    causal: bool,
) -> TiledStep:
    """See ``AttentionBackend.prepare`` for the arguments.

    Args:
        height: positions in a query tile.
    """
    tiles = _tiles(starts, lengths, height, window, causal)
    items: list[tuple[int, ...]] = []
    merges: list[tuple[int, int, int, int]] = []
    parts = 0
    for tile in tiles:
        about = (tile.sequence, tile.batch_row, tile.position, tile.count, tile.end)
        if not tile.divided:
            items.append((*about, tile.first, tile.last, -1))
            continue
        count = tile.last - tile.first
        merges += [(tile.batch_row + r, parts + r, tile.count, count) for r in range(tile.count)]
        for split in range(tile.first, tile.last):
            items.append((*about, split, split + 1, parts))
            parts += tile.count
    packed = _tables(tables)
    return TiledStep(
        parts,
        np.array(items, np.int32).reshape(-1, ITEM),
        np.array(merges, np.int32).reshape(-1, MERGE),
        packed,
        _slots(starts, lengths, packed, block_size),
    )


def _tiles(
    starts: Sequence[int],
    lengths: Sequence[int],
    height: int,
    window: int | None,
    causal: bool,
) -> list[_Tile]:
    """Those with most to do first, so that none of them begins when all others are done."""
    tiles = []
    batch_row = 0
    for sequence, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        end = start + length
        divide = length <= height * SPLIT_TILES
        for offset in range(0, length, height):
            position, count = start + offset, min(height, length - offset)
            reach = position + count if causal else end
            first = 0 if window is None else max(position - window + 1, 0) // SPLIT
            last = -(-reach // SPLIT)
            divided = divide and last - first > 1
            tiles.append(
                _Tile(sequence, batch_row + offset, position, count, end, first, last, divided)
            )
        batch_row += length
    return sorted(tiles, key=lambda tile: tile.first - tile.last)


def _tables(tables: Sequence[Sequence[int]]) -> Table:
    packed = np.zeros((len(tables), max(map(len, tables), default=1)), np.int32)
    for row, table in zip(packed, tables, strict=True):
        row[: len(table)] = table
    return packed


def _slots(
    starts: Sequence[int], lengths: Sequence[int], tables: Table, block_size: int
) -> np.ndarray:
    counts = np.asarray(lengths)
    sequence = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    position = np.repeat(np.asarray(starts), counts) + np.arange(counts.sum()) - first
    block = tables[sequence, position // block_size].astype(np.int64)
    return np.asarray(block * block_size + position % block_size)


def decode_extent(sequences: int, blocks: int, block_size: int, window: int | None) -> Extent:
    """What a step of one token a sequence comes to at most, where each has so many blocks."""
    splits = -(-blocks * block_size // SPLIT)
    if window is not None:
        splits = min(splits, -(-(window - 1) // SPLIT) + 1)
    items = sequences * splits
    return Extent(items, *((sequences, items) if splits > 1 else (0, 0)), blocks)


def padded(step: TiledStep, extent: Extent) -> TiledStep:
    """The same step in arrays of another extent, none of it smaller: what is added does nothing."""
    return TiledStep(
        extent.parts,
        _grown(step.items, extent.items),
        _grown(step.merges, extent.merges),
        np.ascontiguousarray(_grown(step.tables.T, extent.width).T),
        step.slots,
    )


def _grown(array: Table, count: int) -> Table:
    """Rows of zeros behind those that there are."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])
