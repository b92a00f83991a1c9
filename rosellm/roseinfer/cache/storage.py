"""The tensors behind the block tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SCALE_TYPE = torch.float32
"""Of the scales of a cache in 8 bits."""

_LINE = 64  # bytes


def is_scaled(dtype: torch.dtype) -> bool:
    """Whether numbers of a cache in that type are codes with a scale for each head of a token."""
    return dtype.itemsize == 1


@dataclass(frozen=True)
class KVGroup:
    """Layers that share block tables because they keep the same positions.

    Attributes:
        layers: indices of the layers.
        kv_heads, head_dim: what a layer keeps for each token, as key and as value.
        window: latest positions that a token sees, itself included; None sees all.
        causal: whether a token sees only positions up to its own.
    """

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int | None = None
    causal: bool = True

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """In a cache of that type, scales included."""
        head = self.head_dim * dtype.itemsize
        if is_scaled(dtype):
            head += SCALE_TYPE.itemsize
        return 2 * len(self.layers) * self.kv_heads * head


@dataclass(frozen=True)
class KVTensor:
    """Keys or values of one layer.

    Attributes:
        data: [slots, kv heads, D].
        scales: [slots, kv heads] where data has 8 bits, whose numbers are code * scale; else None.
    """

    data: Tensor
    scales: Tensor | None = None


class KVStorage:
    """Keys and values of every layer, by slot = block * block size + offset.

    Two blocks more than a group's pool knows of are kept at the end. The first is all zeros and
    never written: attention reads it where a sequence has no token, or no longer any. The second is
    for whatever has to be written somewhere and means nothing: what CUDA graphs are padded with. On
    a CPU it is never touched, and so takes no memory.

    Args:
        num_blocks: of each group.
        dtype: what numbers are held in; 8 bits take scales beside them.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_blocks: Sequence[int],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups = tuple(groups)
        self.null_blocks = tuple(num_blocks)
        self.trash_blocks = tuple(count + 1 for count in num_blocks)
        self._layers: dict[int, tuple[KVTensor, KVTensor]] = {}
        for group, null_block in zip(self.groups, self.null_blocks, strict=True):
            heads = ((null_block + 2) * block_size, group.kv_heads)
            for layer in group.layers:
                keys, values = (_empty(heads, group.head_dim, dtype, device) for _ in range(2))
                self._layers[layer] = keys, values

    def layer(self, index: int) -> tuple[KVTensor, KVTensor]:
        """Keys and values of one layer."""
        return self._layers[index]


def _empty(heads: tuple[int, int], dim: int, dtype: torch.dtype, device: torch.device) -> KVTensor:
    scales = _zeros(heads, SCALE_TYPE, device) if is_scaled(dtype) else None
    return KVTensor(_zeros((*heads, dim), dtype, device), scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from the system's zero pages, which cost nothing until they are written.

    ``torch.zeros`` writes them all: seconds at start-up, and memory that is never used. They begin
    with a line of the processor's cache, so that what a head keeps is in as few lines as can be.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = np.zeros(num_bytes + _LINE, dtype=np.uint8)
    skipped = -pages.ctypes.data % _LINE
    return torch.from_numpy(pages[skipped : skipped + num_bytes]).view(dtype).view(shape)
