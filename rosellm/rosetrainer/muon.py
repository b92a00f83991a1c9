"""Muon (Jordan, 2024): momentum whose every step is a matrix with all singular values near one.

Its steps have the size of AdamW's (Liu et al., 2025), so that one learning rate serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
ROUNDS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: the steepest at zero that keep singular values of up to one near one."""
RMS_OF_ADAMW = 0.2


class Muon(Optimizer):
    """Steps of matrices, with Nesterov momentum and decoupled decay."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures: not ours
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._step_one(matrix, matrix.grad, group["lr"], group["weight_decay"])

    def _step_one(self, matrix: Tensor, grad: Tensor, lr: float, decay: float) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - MOMENTUM)
        update = orthogonalised(grad.lerp(momentum, MOMENTUM))
        matrix.mul_(1 - lr * decay)
        matrix.add_(update, alpha=-lr * RMS_OF_ADAMW * math.sqrt(max(matrix.shape)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """[N, K] with the same singular vectors and singular values near one, by Newton and Schulz.

    In bfloat16 on a GPU; a CPU may have no products of that type, and stays in float32.
    """
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.t()
    x = x / x.norm().clamp(min=1e-7)
    first, third, fifth = QUINTIC
    for _ in range(ROUNDS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return (x if wide else x.t()).to(matrix.dtype)
