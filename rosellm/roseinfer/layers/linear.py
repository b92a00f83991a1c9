"""Layers with a matrix: a product, whose weight may be fused from several, and a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.table import Ops, PackedForm
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.tensor import QuantizedTensor, pieces

_PROBE_ROWS = 5


class Matrix(nn.Module):
    """A weight [rows, columns], perhaps with a bias, that the kernels lay out in their own way.

    Attributes:
        format: in which the weight is held; None for the model's own type.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    format: Format | None = None

    def __init__(self, ops: Ops, activation: Activation | None = None) -> None:
        super().__init__()
        self._ops = ops
        self._activation = activation
        self._packed: Any = None

    @property
    def packed(self) -> Any:
        """The weight in the kernels' layout."""
        assert self._packed is not None, "pack() comes before the first use"
        return self._packed

    def pack(self) -> None:
        """Lay the loaded weight out for the kernels; the plain one is let go of."""
        self._packed = self._ops.pack_linear(self.weight.data, self._bias(), self._activation)
        self._drop_plain()

    def pack_quantized(self, weight: QuantizedTensor, dtype: torch.dtype) -> None:
        """The same of a quantised weight, where the format asks for one.

        Args:
            dtype: the model's, for kernels that compute in it.
        """
        bias = self._bias()
        self._packed = self._ops.pack_quantized(weight, bias, self._activation, dtype)
        self._drop_plain()

    def held_bytes(self, dtype: torch.dtype) -> int:
        """Memory of the weight once it is laid out, in its format or else in that type."""
        rows, columns = self.weight.shape
        return self._ops.held_bytes((rows, columns), dtype, self.format, self._activation)

    def kept_parts(self, packed: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of what a file keeps of the quantised weight, by name.

        Args:
            packed: in the kernels' layout; otherwise as ``QuantizedTensor`` says.
        """
        assert self.format is not None
        rows, columns = self.weight.shape
        if not packed:
            return dict(pieces(self.format, rows, columns))
        return {"packed": ((self._form.packed_bytes(*self._about),), torch.uint8)}

    def packed_data(self) -> Tensor:
        """The bytes of the laid out quantised weight."""
        return self._form.packed_data(self.packed)

    def take_packed(self, data: Tensor, dtype: torch.dtype) -> None:
        """Take such bytes, as they are and where they are; ``dtype`` as in ``pack_quantized``."""
        form, shape, activation = self._about
        self._packed = self._form.from_packed(data, form, shape, self._bias(), activation)
        self._drop_plain()

    @property
    def _form(self) -> PackedForm:
        assert self._ops.packed is not None
        return self._ops.packed

    @property
    def _about(self) -> tuple[Format, tuple[int, int], Activation | None]:
        assert self.format is not None
        rows, columns = self.weight.shape
        return self.format, (rows, columns), self._activation

    def let_go(self) -> None:
        """Forget the laid out weight too: this module will not be used again."""
        self._packed = None

    def _drop_plain(self) -> None:
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def _bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.data


class Linear(Matrix):
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
        super().__init__(ops, activation)
        self.parts = parts
        self.in_features = in_features
        out_features = sum(parts.values())
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def rows_of(self, name: str) -> slice:
        """The rows of the weight and bias that belong to one part."""
        start = 0
        for part, rows in self.parts.items():
            if part == name:
                return slice(start, start + rows)
            start += rows
        raise KeyError(name)

    def share(self, table: Embedding) -> None:
        """Use an embedding's table as the weight (tied); the own one is never filled."""
        self._packed = table.packed

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.linear(x, self.packed)

    def logits(self, x: Tensor) -> Logits:
        """The same of a head."""
        return self._ops.logits(x, self.packed)

    def rows_are_independent(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Try on this machine whether a row has the same bits alone as among others."""
        count, width = _PROBE_ROWS, self.in_features
        rows = torch.linspace(-1, 1, count * width, device=device).sin().to(dtype)
        rows = rows.view(count, width)
        together = self(rows)
        return torch.equal(self(rows[3:4])[0], together[3])


class Embedding(Matrix):
    """A table of rows; a head may share it.

    Args:
        scale: multiplies the rows that are looked up, not a head's. Rounded to their type
            first, as models with one were trained.
    """

    def __init__(self, ops: Ops, rows: int, width: int, *, scale: float | None = None) -> None:
        super().__init__(ops)
        self._scale = scale
        self.weight = nn.Parameter(torch.empty(rows, width), requires_grad=False)
        self.bias = None

    def pack(self) -> None:
        self._round_scale(self.weight.dtype)
        super().pack()

    def pack_quantized(self, weight: QuantizedTensor, dtype: torch.dtype) -> None:
        self._round_scale(dtype)
        super().pack_quantized(weight, dtype)

    def take_packed(self, data: Tensor, dtype: torch.dtype) -> None:
        self._round_scale(dtype)
        super().take_packed(data, dtype)

    def _round_scale(self, dtype: torch.dtype) -> None:
        if self._scale is not None:
            self._scale = torch.tensor(self._scale, dtype=dtype).item()

    def forward(self, ids: Tensor) -> Tensor:
        rows = self._ops.embedding(ids, self.packed)
        return rows if self._scale is None else rows * self._scale
