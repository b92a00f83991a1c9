"""Paged attention by our Triton kernels. What a step looks like is copied to the device once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosellm.roseinfer.attention.tiles import SPLIT, decode_extent, padded, tile_step
from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.triton.attention import attention_kernel, merge_kernel
from rosellm.roseinfer.kernels.triton.launch import EXACT, launch
from rosellm.roseinfer.kernels.upload import Upload, at_once

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
    """A step's sequences on the device.

    Attributes:
        parts, items, merges, tables, slots: see ``TiledStep``.
        window: positions that a token sees, or 0.
    """

    parts: int
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
    capturable = True

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
        upload: Upload | None = None,
        blocks: int | None = None,
    ) -> TritonStep:
        size = self._block_size
        step = tile_step(starts, lengths, tables, size, self._height, window, causal)
        if blocks is not None:
            step = padded(step, decode_extent(len(starts), blocks, size, window))
        upload = upload or at_once(self._device)
        return TritonStep(
            parts=step.parts,
            items=upload(step.items),
            merges=upload(step.merges),
            tables=upload(step.tables),
            slots=upload(step.slots),
            window=window or 0,
            causal=causal,
        )

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
        _, heads, dim = q.shape
        kv_heads = keys.data.shape[1]
        padded_dim = max(16, triton.next_power_of_2(dim))
        shape = Shape.of(q.dtype, padded_dim)
        out = torch.empty_like(q)
        parts = q.new_empty((meta.parts, heads, dim), dtype=torch.float32)
        states = q.new_empty((meta.parts, heads, 2), dtype=torch.float32)
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
            num_warps=shape.warps,
            num_stages=shape.stages,
            **EXACT,
        )
        if len(meta.merges):
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
