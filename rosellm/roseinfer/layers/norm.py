"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.table import Ops


class RMSNorm(nn.Module):
    """Scale to unit root mean square."""

    def __init__(self, ops: Ops, width: int, eps: float) -> None:
        super().__init__()
        self._ops = ops
        self._eps = eps
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self._eps)


class LayerNorm(nn.Module):
    """Normalise to mean 0 and variance 1."""

    def __init__(self, ops: Ops, width: int, eps: float) -> None:
        super().__init__()
        self._ops = ops
        self._eps = eps
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.layer_norm(x, self.weight, self.bias, self._eps)
