"""Which implementation of the operations runs, and why.

Models call operations through an ``Ops`` value that is handed to them, so that a
faster set can take the reference's place without a model knowing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import PackedLinear


@dataclass(frozen=True)
class Ops:
    """One implementation of every operation; signatures are those in ``reference``.

    Attributes:
        name: what start-up calls it.
        invariant: whether it keeps the promise of schedule-invariance.
        reason: why it was chosen.
    """

    name: str
    invariant: bool
    reason: str
    pack_linear: Callable[[Tensor, Tensor | None], PackedLinear]
    linear: Callable[[Tensor, PackedLinear], Tensor]
    embedding: Callable[[Tensor, PackedLinear], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    gelu_tanh_mul: Callable[[Tensor], Tensor]
    gelu_erf: Callable[[Tensor], Tensor]
    gelu_tanh: Callable[[Tensor], Tensor]
    rope: Callable[[Tensor, Tensor, Tensor], Tensor]
    route: Callable[[Tensor, int, bool], tuple[Tensor, Tensor]]
    write_kv: Callable[[Tensor, Tensor, Tensor], None]


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
        silu_mul=reference.silu_mul,
        gelu_tanh_mul=reference.gelu_tanh_mul,
        gelu_erf=reference.gelu_erf,
        gelu_tanh=reference.gelu_tanh,
        rope=reference.rope,
        route=reference.route,
        write_kv=reference.write_kv,
    )
