"""A mixture of experts: many MLPs, of which each token goes through a few (arXiv:1701.06538).

A token's result depends on that token alone: products run row by row in bits, and its experts'
results are added in the order of its own preference, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.linear import Linear


class MixtureOfExperts(nn.Module):
    """Sum of the chosen experts' results, each times the router's weight for it.

    Args:
        experts: from [n, hidden] to [n, hidden] each.
        active: how many of them a token goes through.
        normalise: whether the weights of those are made to sum to 1.
    """

    def __init__(
        self,
        ops: Ops,
        hidden_size: int,
        experts: Iterable[nn.Module],
        *,
        active: int,
        normalise: bool,
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = Linear(ops, hidden_size, {"router": len(self.experts)}, bias=False)
        self._ops = ops
        self._active = active
        self._normalise = normalise

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self._ops.route(self.router(x), self._active, self._normalise)
        results = self._of_chosen(x, chosen).float() * weights[..., None]
        total = results[:, 0]
        for rank in range(1, self._active):
            total = total + results[:, rank]
        return total.to(x.dtype)

    def _of_chosen(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Results [T, active, hidden] of each token's chosen [T, active] experts.

        Each expert is called once, with all rows that chose it; then the rows go back.
        """
        expert_of_row = chosen.flatten()
        order = expert_of_row.argsort(stable=True)
        counts = torch.bincount(expert_of_row, minlength=len(self.experts)).tolist()
        parts = x[order // self._active].split(counts)
        pairs = zip(self.experts, parts, strict=True)
        grouped = torch.cat([expert(part) for expert, part in pairs if len(part)])
        results = torch.empty_like(grouped)
        results[order] = grouped
        return results.view(*chosen.shape, -1)
