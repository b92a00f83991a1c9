"""Paged attention in plain torch: the specification of the fast backends.

Online softmax (arXiv:1805.02867) over KV tiles at fixed positions. Queries are
grouped in tiles of a fixed number of rows of one sequence, so that every matrix
product has one shape and a row's bits do not depend on how it was scheduled. A KV
tile that a row cannot see leaves its running maximum, sum and output exactly as
they were: they are multiplied by exp(0) and zeros are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.reference import batched_matmul, read_kv, tree_sum
from rosellm.roseinfer.kernels.upload import Upload, at_once

QUERY_TILE = 16
KV_TILE = 128


@dataclass(frozen=True)
class Tiles:
    """A step's query tiles, those with most KV tiles first.

    Attributes:
        rows: [tiles, QUERY_TILE] index of each query row in the batch (padding repeats one).
        positions: [tiles, QUERY_TILE] position of each row.
        kv_slots: [sequences, KV tiles * KV_TILE] slot of each position; the null slot, whose
            content is zero, where there is none.
        sequences: [tiles] sequence of each tile.
        active: per KV tile, how many query tiles reach it.
        inverse: [T] place of each batch row in the flattened query tiles.
        slots: [T] slot of each batch row's own key and value.
        first: the first KV tile that any row sees.
        ends: [tiles, 1, 1] end of each row's sequence, where rows see past themselves.
    """

    rows: Tensor
    positions: Tensor
    kv_slots: Tensor
    sequences: Tensor
    active: tuple[int, ...]
    inverse: Tensor
    slots: Tensor
    window: int | None
    first: int
    ends: Tensor | None


class ReferenceAttention:
    """See ``AttentionBackend``."""

    name = "reference"
    invariant = True
    capturable = False  # which tiles there are is known to the host alone

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device

    def prepare(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        null_block: int,
        window: int | None = None,
        causal: bool = True,
        upload: Upload | None = None,
        blocks: int | None = None,
    ) -> Tiles:
        upload = upload or at_once(self._device)
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        kv_slots = self._kv_slots(ends, tables, null_block)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # One entry per query tile: sequence, first row within it; longest reach first.
        tiles = [(s, r) for s, length in enumerate(lengths) for r in range(0, length, QUERY_TILE)]
        seen = [min(ends[s], starts[s] + r + QUERY_TILE) if causal else ends[s] for s, r in tiles]
        reach = [-(-end // KV_TILE) for end in seen]
        order = sorted(range(len(tiles)), key=lambda i: -reach[i])
        sequences = np.array([tiles[i][0] for i in order])
        first = np.array([tiles[i][1] for i in order])
        within = first[:, None] + np.arange(QUERY_TILE)
        last = np.asarray(lengths)[sequences] - 1
        clipped = np.minimum(within, last[:, None])
        rows = offsets[sequences][:, None] + clipped
        inverse = np.empty(offsets[-1], dtype=np.int64)
        real = (within <= last[:, None]).ravel()
        inverse[rows.ravel()[real]] = np.flatnonzero(real)
        own = [kv_slots[s, a:b] for s, (a, b) in enumerate(zip(starts, ends, strict=True))]
        counts = np.array([reach[i] for i in order])
        return Tiles(
            rows=upload(rows),
            positions=upload(np.asarray(starts)[sequences][:, None] + clipped),
            kv_slots=upload(kv_slots),
            sequences=upload(sequences),
            active=tuple(int((counts > j).sum()) for j in range(counts.max())),
            inverse=upload(inverse),
            slots=upload(np.concatenate(own)),
            window=window,
            first=0 if window is None else max(min(starts) - window + 1, 0) // KV_TILE,
            ends=None if causal else upload(np.asarray(ends)[sequences][:, None, None]),
        )

    def slots(self, meta: Tiles) -> Tensor:
        return meta.slots

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: Tiles,
        softcap: float | None = None,
    ) -> Tensor:
        _, kv_heads, dim = keys.data.shape
        group = q.shape[1] // kv_heads
        tiled = self._tile(q.float() * scale, kv_heads, meta)
        maximum = tiled.new_full((*tiled.shape[:3], 1), -torch.inf)
        total = torch.zeros_like(maximum)
        output = torch.zeros_like(tiled)
        for index, active in enumerate(meta.active):
            if index < meta.first:
                continue
            slots = meta.kv_slots[meta.sequences[:active], index * KV_TILE : (index + 1) * KV_TILE]
            heads = torch.arange(kv_heads, device=self._device)
            rows = slots * kv_heads + heads[:, None, None]
            k, v = (_gather(cache, rows) for cache in (keys, values))
            hidden = self._hidden(meta, index, active).repeat_interleave(group, dim=1)
            scores = batched_matmul(tiled[:, :active], k.transpose(2, 3))
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores.masked_fill_(hidden, -torch.inf)
            state = maximum[:, :active], total[:, :active], output[:, :active]
            _accumulate(state, scores, v)
        output = (output / total)[..., :dim]
        output = output.unflatten(2, (QUERY_TILE, group)).permute(1, 2, 0, 3, 4)
        attended: Tensor = output.reshape(-1, kv_heads * group, dim)[meta.inverse].to(q.dtype)
        return attended

    def _tile(self, q: Tensor, kv_heads: int, meta: Tiles) -> Tensor:
        """[kv heads, tiles, QUERY_TILE * group, D padded]: rows of a tile share a KV head."""
        tiled = _pad_last(q)[meta.rows]
        tiled = tiled.unflatten(2, (kv_heads, -1)).permute(2, 0, 1, 3, 4)
        flat: Tensor = tiled.flatten(2, 3)
        return flat

    def _kv_slots(
        self, ends: Sequence[int], tables: Sequence[Sequence[int]], null_block: int
    ) -> np.ndarray:
        """Slot of every position of every sequence, padded to whole KV tiles."""
        width = -(-max(ends) // KV_TILE) * KV_TILE
        slots = np.full((len(ends), width), null_block * self._block_size, dtype=np.int64)
        within = np.arange(self._block_size)
        for row, end, table in zip(slots, ends, tables, strict=True):
            blocks = np.asarray(table[: -(-end // self._block_size)], dtype=np.int64)
            row[:end] = (blocks[:, None] * self._block_size + within).ravel()[:end]
        return slots

    def _hidden(self, meta: Tiles, index: int, active: int) -> Tensor:
        """[active, QUERY_TILE, KV_TILE]: which positions a row must not see."""
        begin = index * KV_TILE
        kv = torch.arange(begin, begin + KV_TILE, device=self._device)
        own = meta.positions[:active, :, None]
        hidden = kv > own if meta.ends is None else (kv >= meta.ends[:active]).expand_as(kv > own)
        if meta.window is not None:
            hidden |= kv <= own - meta.window
        return hidden


def _pad_last(x: Tensor) -> Tensor:
    """Zeros up to a multiple of 16: edge columns of a product may sum in another order."""
    padding = -x.shape[-1] % 16
    return F.pad(x, (0, padding)) if padding else x


def _gather(cache: KVTensor, rows: Tensor) -> Tensor:
    """Rows [kv heads, tiles, n] of a cache, see ``read_kv``: [kv heads, tiles, n, D padded] in
    fp32. One pass, which also transposes."""
    return _pad_last(read_kv(cache, rows.flatten()).view(*rows.shape, -1))


def _accumulate(state: tuple[Tensor, Tensor, Tensor], scores: Tensor, values: Tensor) -> None:
    """One step of the online softmax, in place."""
    maximum, total, output = state
    new_maximum = torch.maximum(maximum, scores.amax(-1, keepdim=True))
    # A row that has seen nothing yet (only with windows) would compute inf - inf.
    safe = new_maximum.clamp(min=torch.finfo(scores.dtype).min)
    weights = torch.exp(scores - safe)
    decay = torch.exp(maximum - safe)
    total.mul_(decay).add_(tree_sum(weights))
    output.mul_(decay).add_(batched_matmul(weights, values))
    maximum.copy_(new_maximum)
