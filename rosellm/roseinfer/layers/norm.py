"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.table import Ops


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by the weight, or by 1 + weight (``offset``)."""

    def __init__(self, ops: Ops, width: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self._ops = ops
        self.eps = eps
        self._offset = offset
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)

    def pack(self) -> None:
        """Fold the offset in; in fp32, where 1 + a small weight does not lose the weight."""
        if self._offset:
            self.weight.data = 1.0 + self.weight.data.float()

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self.weight, self.eps)


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
