"""Rotary position embedding: the table of angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeSpec:
    """What a checkpoint says of its rotary embedding.

    Attributes:
        theta: base of the frequencies.
        dim: rotated dimensions of each head.
    """

    theta: float
    dim: int


class RopeTable:
    """cos and sin of every position, fp32, computed once.

    The angles are built on the CPU whatever the device, so that a position's bits are the
    same everywhere.
    """

    def __init__(self, spec: RopeSpec, max_positions: int, device: torch.device) -> None:
        exponents = torch.arange(0, spec.dim, 2, dtype=torch.int64).float() / spec.dim
        frequencies = 1.0 / (spec.theta**exponents)
        angles = torch.arange(max_positions).float()[:, None] * frequencies
        self._cos = angles.cos().to(device)
        self._sin = angles.sin().to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [T], each [T, dim / 2]."""
        return self._cos[positions], self._sin[positions]
