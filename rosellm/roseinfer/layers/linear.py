"""A linear layer whose weight may be fused from several of the checkpoint's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.reference import Activation, PackedLinear
from rosellm.roseinfer.kernels.table import Ops

_PROBE_ROWS = 5


class Linear(nn.Module):
    """y = x W^T + b, or an activation of that.

    Args:
        ops: implementation of the product.
        in_features: width of x.
        parts: output rows of each named part, in order; q, k and v for instance.
        bias: whether there is one.
        activation: what becomes of y; one of two inputs takes both halves and gives one.
    """

    def __init__(
        self,
        ops: Ops,
        in_features: int,
        parts: dict[str, int],
        *,
        bias: bool,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.parts = parts
        self.in_features = in_features
        self._ops = ops
        out_features = sum(parts.values())
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self._packed: PackedLinear | None = None

    def part(self, fused: Tensor, name: str) -> Tensor:
        """The rows of the weight or bias that belong to one part: a view."""
        start = 0
        for part, rows in self.parts.items():
            if part == name:
                return fused[start : start + rows]
            start += rows
        raise KeyError(name)

    def pack(self) -> None:
        """Lay the loaded weight out for the kernels; the plain one is let go of."""
        bias = None if self.bias is None else self.bias.data
        self._packed = self._ops.pack_linear(self.weight.data, bias, self._activation)
        self.weight.data = self.weight.data.new_empty(0)

    def share(self, table: Embedding) -> None:
        """Use an embedding's table as the weight (tied); the own one is never filled."""
        self._packed = table.packed

    def forward(self, x: Tensor) -> Tensor:
        assert self._packed is not None, "pack() comes before the first use"
        return self._ops.linear(x, self._packed)

    def rows_are_independent(self) -> bool:
        """Try on this machine whether a row has the same bits alone as among others."""
        assert self._packed is not None, "pack() comes before the first use"
        count, width = _PROBE_ROWS, self._packed.in_features
        weight = self._packed.weight
        rows = torch.linspace(-1, 1, count * width, device=weight.device).sin().to(weight.dtype)
        rows = rows.view(count, width)
        together = self(rows)
        return torch.equal(self(rows[3:4])[0], together[3])


class Embedding(nn.Module):
    """A table of rows; a head may share it.

    Args:
        scale: multiplies the rows that are looked up, not a head's. Rounded to their type
            first, as models with one were trained.
    """

    def __init__(self, ops: Ops, rows: int, width: int, *, scale: float | None = None) -> None:
        super().__init__()
        self._ops = ops
        self._scale = scale
        self.weight = nn.Parameter(torch.empty(rows, width), requires_grad=False)
        self.packed: PackedLinear

    def pack(self) -> None:
        self.packed = self._ops.pack_linear(self.weight.data, None, None)
        self.weight.data = self.weight.data.new_empty(0)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self._ops.embedding(ids, self.packed)
        if self._scale is None:
            return rows
        return rows * torch.tensor(self._scale, dtype=rows.dtype).item()
