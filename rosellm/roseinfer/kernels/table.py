"""Which implementation of the operations runs, and why.

Models call operations through an ``Ops`` value that is handed to them, so that a
faster set can take the reference's place without a model knowing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.attention import by_parts
from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import Activation, PackedLinear


@dataclass(frozen=True)
class Ops:
    """One implementation of every operation. Signatures are those in ``reference``; that of
    ``attend`` is in ``attention.by_parts``.

    Attributes:
        name: what start-up calls it.
        invariant: whether it keeps the promise of schedule-invariance.
        reason: why it was chosen.
    """

    name: str
    invariant: bool
    reason: str
    pack_linear: Callable[[Tensor, Tensor | None, Activation | None], PackedLinear]
    linear: Callable[[Tensor, PackedLinear], Tensor]
    embedding: Callable[[Tensor, PackedLinear], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    attend: Callable[[Tensor, Heads, HeadNorms | None, Step], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]


def choose_ops(device: torch.device) -> Ops:
    """The best implementation for a device."""
    return Ops(
        name="reference",
        invariant=True,
        reason=f"plain torch on {device.type}; no faster kernels are built yet",
        pack_linear=reference.pack_linear,
        linear=reference.linear,
        embedding=reference.embedding,
        rms_norm=reference.rms_norm,
        layer_norm=reference.layer_norm,
        attend=by_parts.attend,
        route=reference.route,
    )
