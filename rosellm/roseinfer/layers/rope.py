"""Rotary position embedding: the table of angles."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rosellm.roseinfer.layers.rope_scaling import Unscaled


@dataclass(frozen=True)
class RopeSpec:
    """What a checkpoint says of its rotary embedding.

    Attributes:
        theta: base of the frequencies.
        dim: rotated dimensions of each head.
        scaling: how the frequencies are changed for long contexts.
    """

    theta: float
    dim: int
    scaling: Unscaled = field(default_factory=Unscaled)


class RopeTable:
    """cos and sin of every position, fp32, computed once.

    The angles are built on the CPU whatever the device, so that a position's bits are the
    same everywhere.

    Args:
        max_positions: longest sequence that is served; some scalings depend on it.
    """

    def __init__(self, spec: RopeSpec, max_positions: int, device: torch.device) -> None:
        frequencies = spec.scaling.frequencies(spec.theta, spec.dim, max_positions)
        angles = torch.arange(max_positions).float()[:, None] * frequencies
        self._cos = (angles.cos() * spec.scaling.amplitude).to(device)
        self._sin = (angles.sin() * spec.scaling.amplitude).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [T], each [T, dim / 2]."""
        return self._cos[positions], self._sin[positions]
