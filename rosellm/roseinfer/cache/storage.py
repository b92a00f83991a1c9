"""The tensors behind the block tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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
        return 2 * len(self.layers) * self.kv_heads * self.head_dim * dtype.itemsize


class KVStorage:
    """Keys and values of every layer, by slot = block * block size + offset.

    One block more than a group's pool knows of is kept at the end, all zeros and never
    written: attention reads it where a sequence has no token, or no longer any.
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
        self._layers: dict[int, Tensor] = {}
        for group, null_block in zip(self.groups, self.null_blocks, strict=True):
            shape = (2, (null_block + 1) * block_size, group.kv_heads, group.head_dim)
            for layer in group.layers:
                self._layers[layer] = _zeros(shape, dtype, device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each [slots, kv heads, D]."""
        keys, values = self._layers[index]
        return keys, values


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from the system's zero pages, which cost nothing until they are written.

    ``torch.zeros`` writes them all: seconds at start-up, and memory that is never used.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(pages).view(dtype).view(shape)
