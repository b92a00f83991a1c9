"""Rotary position embedding: the table of angles."""

from __future__ import annotations

from collections.abc import Mapping
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
    """cos and sin of every position, fp32 [max_positions, dim / 2], computed once.

    The angles are built on the CPU whatever the device, so that a position's bits are the
    same everywhere.

    Args:
        max_positions: longest sequence that is served; some scalings depend on it.
    """

    def __init__(self, spec: RopeSpec, max_positions: int, device: torch.device) -> None:
        frequencies = spec.scaling.frequencies(spec.theta, spec.dim, max_positions)
        angles = torch.arange(max_positions).float()[:, None] * frequencies
        self.cos = (angles.cos() * spec.scaling.amplitude).to(device)
        self.sin = (angles.sin() * spec.scaling.amplitude).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions [T], each [T, dim / 2]."""
        return self.cos[positions], self.sin[positions]


class Angles:
    """What the rotary embeddings of a model are at a step's positions, computed when asked for."""

    def __init__(self, tables: Mapping[RopeSpec, RopeTable], positions: Tensor) -> None:
        self._tables, self._positions = tables, positions
        self._known: dict[RopeSpec, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, spec: RopeSpec) -> tuple[Tensor, Tensor]:
        """cos and sin of one embedding, each [T, dim / 2]."""
        if spec not in self._known:
            self._known[spec] = self._tables[spec].at(self._positions)
        return self._known[spec]
