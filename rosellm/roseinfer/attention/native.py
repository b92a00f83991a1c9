"""Paged attention by the native kernels. What a step looks like is put into plain arrays once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVTensor
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.upload import Upload

_Table = tuple[tuple[int, ...], bytes]  # and its int32


@dataclass(frozen=True)
class NativeStep:
    """A step's sequences as the kernels take them.

    Attributes:
        sequences: the struct that says it all.
        slots: int64, of each query token's key and value.
        kept: what the struct points to.
    """

    sequences: structs.Sequences
    slots: array[int]
    kept: tuple[array[int], ...]


class NativeAttention:
    """See ``AttentionBackend``. Computes in fp32, whatever the type of the queries; with a cache
    of bf16 or int8, where the processor multiplies bf16, queries and weights are rounded to it."""

    name = "native"
    invariant = True
    capturable = False

    def __init__(self, block_size: int, library: Library) -> None:
        self._block_size = block_size
        self._c = library.c
        self._last: dict[tuple[int, int | None], list[_Table]] = {}

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
    ) -> NativeStep:
        rows = array("i", accumulate(lengths, initial=0))
        positions = array("i", starts)
        known = self._pack(tables, (null_block, window))
        begins = array("i", accumulate([len(table) for table, _ in known], initial=0))
        flat = array("i")
        flat.frombytes(b"".join([packed for _, packed in known]))
        kept = (rows, positions, flat, begins)
        sequences = structs.Sequences(
            len(positions),
            *(part.buffer_info()[0] for part in kept),
            self._block_size,
            causal,
            window or 0,
        )
        slots = array("q", bytes(8 * rows[-1]))
        self._c.rose_slots(byref(sequences), slots.buffer_info()[0])
        return NativeStep(sequences, slots, kept)

    def slots(self, meta: NativeStep) -> Tensor:
        return torch.frombuffer(meta.slots, dtype=torch.int64)

    def run(
        self,
        q: Tensor,
        keys: KVTensor,
        values: KVTensor,
        scale: float,
        meta: NativeStep,
        softcap: float | None = None,
    ) -> Tensor:
        rows = q.flatten(1).float().contiguous()
        out = torch.empty_like(rows)
        parts = (structs.Activations.of(part) for part in (rows, out))
        call = structs.Attention(*parts, q.shape[1], scale, softcap or 0.0)
        cache = structs.KvCache.of(keys, values)
        self._c.rose_attention(byref(call), byref(meta.sequences), byref(cache))
        return out.to(q.dtype).view(q.shape)

    def _pack(self, tables: Sequence[Sequence[int]], group: tuple[int, int | None]) -> list[_Table]:
        """Tables as int32; most are those of the last step, in the same place."""
        last = self._last.get(group, [])
        packed = []
        for index, table in enumerate(map(tuple, tables)):
            if index < len(last) and last[index][0] == table:
                packed.append(last[index])
            else:
                packed.append((table, array("i", table).tobytes()))
        self._last[group] = packed
        return packed
