"""Quantised weights as ``matmul_quantized`` reads them. Plain torch; no Triton here.

A row's codes lie together, so that a program reads whole lines of memory; what several columns
share lies with its neighbours in other rows, since a program takes many rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.kernels.triton.tiles import PACKED_BLOCK_K
from rosellm.roseinfer.quant.formats import PART, Format
from rosellm.roseinfer.quant.tensor import ZERO, QuantizedTensor

Kind = Literal["int8", "int4", "fp8"]

_ROWS = 128
"""What several columns share has so many rows more, and whole tiles: they read past the end."""

_HALF = PACKED_BLOCK_K // 2
_BIAS8 = 128  # codes from -127 to 127 as bytes


@dataclass(frozen=True)
class PackedCodes:
    """A weight [rows, columns] in few bits.

    Attributes:
        kind: what codes mean.
        group: columns that share a scale; 0 in fp8: all of them.
        codes: uint8 [rows, bytes]: a column in each, or two, see ``matmul_quantized``.
        scales: fp16 [groups, rows padded]; fp8: fp32 [rows padded].
        points: 4 bits: int16 [parts, rows padded], step + 256 * offset.
        dtype: what numbers are rounded to before they are multiplied.
    """

    kind: Kind
    rows: int
    columns: int
    group: int
    codes: Tensor
    scales: Tensor
    points: Tensor | None
    dtype: torch.dtype

    def numbers(self, rows: Tensor) -> Tensor:
        """What the codes of these rows [T] mean: [T, columns], in ``dtype``."""
        codes = self.codes[rows]
        if self.kind == "fp8":
            wide = codes.view(torch.float8_e4m3fn).float() * self.scales[rows][:, None]
            return wide[:, : self.columns].to(self.dtype)
        scales = self._spread(self.scales[:, rows].float(), self.group)
        if self.points is None:
            wide = (codes.float() - _BIAS8)[:, : self.columns] * scales
            return wide.to(self.dtype)
        halves = codes.unflatten(1, (-1, _HALF))
        each = torch.stack([halves & 15, halves >> 4], dim=2).flatten(1)[:, : self.columns]
        points = self.points[:, rows].int()
        steps, offsets = (
            self._spread(part.float(), PART) for part in (points & 255, points >> 8 & 255)
        )
        return ((each.float() * steps + offsets - ZERO) * scales).to(self.dtype)

    def _spread(self, each: Tensor, size: int) -> Tensor:
        """What so many columns share [parts, T], at each of them: [T, columns]."""
        return each.t().repeat_interleave(size, dim=1)[:, : self.columns]


def pack(weight: QuantizedTensor, dtype: torch.dtype) -> PackedCodes:
    """Lay a weight out, on the device that it is on."""
    rows, columns = weight.shape
    form = weight.format
    kind = kind_of(form)
    if kind == "fp8":
        codes = _full_rows(weight.data.view(torch.uint8), 0)
        scales = F.pad(weight.scales[:, 0], (0, _padded(rows) - rows))
        return PackedCodes(kind, rows, columns, 0, codes, scales, None, dtype)
    scales = _by_column(weight.scales, _groups(form, columns))
    if kind == "int8":
        codes = _full_rows((weight.data.short() + _BIAS8).to(torch.uint8), _BIAS8)
        return PackedCodes(kind, rows, columns, form.group, codes, scales, None, dtype)
    assert weight.steps is not None
    assert weight.offsets is not None
    halves = _full_rows(weight.codes(), 0).unflatten(1, (-1, 2, _HALF))
    codes = (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1).contiguous()
    parts = _full(columns) // PART
    points = weight.steps.short() + (weight.offsets.short() << 8)
    return PackedCodes(
        kind, rows, columns, form.group, codes, scales, _by_column(points, parts), dtype
    )


def kind_of(form: Format) -> Kind:
    """What the kernels call a format."""
    if form.kind == "float":
        return "fp8"
    return "int8" if form.bits == 8 else "int4"


def packed_bytes(form: Format, rows: int, columns: int) -> int:
    """Memory of what ``pack`` makes."""
    full, padded = _full(columns), _padded(rows)
    if form.kind == "float":
        return rows * full + 4 * padded
    groups = _groups(form, columns)
    if form.bits == 8:
        return rows * full + 2 * padded * groups
    return rows * full // 2 + 2 * padded * (groups + full // PART)


def _full(columns: int) -> int:
    """Columns of whole steps."""
    return columns + -columns % PACKED_BLOCK_K


def _groups(form: Format, columns: int) -> int:
    return -(-_full(columns) // form.group)


def _padded(rows: int) -> int:
    return rows + -rows % _ROWS + _ROWS


def _full_rows(codes: Tensor, zero: int) -> Tensor:
    """Rows of whole steps; what fills them up means 0, or is multiplied with 0."""
    return F.pad(codes, (0, _full(codes.shape[1]) - codes.shape[1]), value=zero).contiguous()


def _by_column(shared: Tensor, parts: int) -> Tensor:
    """[rows, fewer] as [parts, rows padded]."""
    rows, fewer = shared.shape
    return F.pad(shared.t(), (0, _padded(rows) - rows, 0, parts - fewer)).contiguous()
