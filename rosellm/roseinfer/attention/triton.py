"""Paged attention by our Triton kernels. What a step looks like is copied to the device once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.attention.tiles import SPLIT, Extent, TiledStep, padded, tile_step
from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.triton.attention import attention_kernel, merge_kernel
from rosellm.roseinfer.kernels.triton.launch import EXACT, launch

_LOG2_E = 1.4426950408889634
_ROWS = 64
"""Query rows in a tile: what the widest matrix instructions take."""


@dataclass(frozen=True)
class Shape:
    """KV positions in a tile, and how the work on it is done, by the type of the queries and the
    width of a head. A row's bits depend on it."""

    tile: int
    warps: int
    stages: int

    @classmethod
    def of(cls, dtype: torch.dtype, padded_dim: int) -> Shape:
        if dtype == torch.float32:  # no tensor cores: products in full precision
            return cls(tile=32 if padded_dim <= 256 else 16, warps=8, stages=1)
        if padded_dim <= 128:
            return cls(tile=64, warps=4, stages=2)
        if padded_dim <= 256:
            return cls(tile=32, warps=8, stages=2)
        return cls(tile=16, warps=16, stages=1)


@dataclass(frozen=True)
class TritonStep:
    """A step's sequences on the device; all but the slots lie in one tensor.

    Attributes:
        items, merges, tables, slots: see ``TiledStep``.
        window: positions that a token sees, or 0.
    """

    extent: Extent
    items: Tensor
    merges: Tensor
    tables: Tensor
    slots: Tensor
    window: int
    causal: bool


class TritonAttention:
    """See ``AttentionBackend``. Scores and sums in fp32; weights are rounded to the queries' type
    before they multiply values.

    Args:
        group: query heads that share a KV head.
    """

    name = "triton"
    invariant = True

    def __init__(self, block_size: int, device: torch.device, group: int) -> None:
        self._block_size = block_size
        self._device = device
        self._group_blocks = -(-group // _ROWS)
        self._height = _ROWS // -(-group // self._group_blocks)

    def prepare(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        null_block: int,
        window: int | None = None,
        causal: bool = True,
    ) -> TritonStep:
        step = self.tiled(starts, lengths, tables, window, causal)
        return self.on_device(step, window, causal)

    def tiled(
        self,
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        window: int | None = None,
        causal: bool = True,
        extent: Extent | None = None,
    ) -> TiledStep:
        """The step on the host; ``extent`` pads it, so that a captured graph can be used again."""
        size, height = self._block_size, self._height
        step = tile_step(starts, lengths, tables, size, height, window, causal)
        return step if extent is None else padded(step, extent)

    def on_device(self, step: TiledStep, window: int | None, causal: bool) -> TritonStep:
        """The step on the device, in one copy that nobody waits for."""
        return unpacked(pack(step).to(self._device, non_blocking=True), step.extent, window, causal)

    def slots(self, meta: TritonStep) -> Tensor:
        return meta.slots

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: TritonStep,
        softcap: float | None = None,
    ) -> Tensor:
        q = q.contiguous()
        tokens, heads, dim = q.shape
        kv_heads = keys.data.shape[1]
        padded_dim = max(16, triton.next_power_of_2(dim))
        shape = Shape.of(q.dtype, padded_dim)
        out = torch.empty_like(q)
        parts = q.new_empty((meta.extent.parts, heads, dim), dtype=torch.float32)
        states = q.new_empty((meta.extent.parts, heads, 2), dtype=torch.float32)
        launch(
            attention_kernel,
            (len(meta.items), kv_heads * self._group_blocks),
            *(q, out, keys.data, values.data, keys.scales, values.scales, parts, states),
            *(meta.items, meta.tables, scale * _LOG2_E, softcap or 0.0, meta.window),
            meta.tables.shape[1],
            CAUSAL=meta.causal,
            WINDOW=meta.window > 0,
            SOFTCAP=softcap is not None,
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            GROUP_BLOCKS=self._group_blocks,
            DIM=dim,
            DIM_PADDED=padded_dim,
            BLOCK_SIZE=self._block_size,
            ROWS=_ROWS,
            TILE=shape.tile,
            TILES=SPLIT // shape.tile,
            VALUE_TYPE=_value_type(q, values),
            PRECISION="ieee",
            num_warps=shape.warps,
            num_stages=shape.stages,
            **EXACT,
        )
        if meta.extent.merges:
            launch(
                merge_kernel,
                (len(meta.merges), heads),
                *(parts, states, out, meta.merges),
                HEADS=heads,
                DIM=dim,
                DIM_PADDED=padded_dim,
                num_warps=1 if padded_dim <= 128 else 4,
                **EXACT,
            )
        return out


def _value_type(q: Tensor, values: KVTensor) -> tl.dtype:
    """In which weights and values are multiplied. Weights that have taken in a small scale would
    leave fp16's range."""
    if q.dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if q.dtype == torch.bfloat16 or values.scales is not None else tl.float16


def pack(step: TiledStep) -> Tensor:
    """All of a step as int32 in one tensor on the host, pinned where there is a device."""
    parts = (step.slots.view(np.int32), step.items, step.merges, step.tables)
    packed = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
    return packed.pin_memory() if torch.cuda.is_available() else packed


def unpacked(packed: Tensor, extent: Extent, window: int | None, causal: bool) -> TritonStep:
    """Views of what ``pack`` made, wherever it lies now."""
    counts = (extent.tokens * 2, extent.items * 8, extent.merges * 4)
    slots, items, merges, tables = packed.split([*counts, extent.sequences * extent.width])
    return TritonStep(
        extent,
        items.view(-1, 8),
        merges.view(-1, 4),
        tables.view(-1, extent.width),
        slots.view(torch.int64),
        window or 0,
        causal,
    )
