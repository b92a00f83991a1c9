"""A matrix in few bits, and what its bits mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rosellm.roseinfer.kernels import float8
from rosellm.roseinfer.quant.formats import PART, Format, parts_of

MOST_CODE8, MOST_CODE4, MOST_STEP = 127, 15, 15

ZERO, MOST_POINT = 128, 255
"""In 4 bits, the point of a group's grid that means 0, and the last one."""

_ROWS = 512


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix [N, K] in few bits.

    In 8 bits a number is ``scale * code``, in 4 ``scale * (step * code + offset - 128)``: the
    group has a grid of 256 points, of which a part of 32 columns uses 16 at equal distances; so
    products can be of 8-bit whole numbers, and a scale is needed once a group. Of floats a number
    is ``scale * code`` too, the scale that of its row.

    Attributes:
        format: bits, and columns a group.
        columns: K.
        data: 8 bits: int8 [N, K], codes from -127 to 127. 4 bits: uint8 [N, (K + 1) // 2], codes
            from 0 to 15, two columns in a byte with the even one in the low half. Floats: e4m3
            [N, K].
        scales: fp16 [N, groups]; of floats fp32 [N, 1].
        steps: 4 bits: uint8 [N, parts], from 0 to 15.
        offsets: 4 bits: uint8 [N, parts], such that 15 * step + offset <= 255.
    """

    format: Format
    columns: int
    data: Tensor
    scales: Tensor
    steps: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0], self.columns

    @property
    def num_bytes(self) -> int:
        return self.format.num_bytes(*self.shape)

    def named_parts(self) -> Iterator[tuple[str, Tensor]]:
        """What it consists of, as it is stored; the data last, so that all is there when they are
        read, and they can be forgotten at once."""
        for name in ("scales", "steps", "offsets", "data"):
            part = getattr(self, name)
            if part is not None:
                yield name, part

    def rows(self, rows: slice) -> QuantizedTensor:
        """Some of the rows: views."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> QuantizedTensor:
        """The same on a device; itself where it is there already."""
        return self._each(lambda part: part.to(device))

    def is_sound(self) -> bool:
        """Whether scales and floats are finite, and steps and offsets keep to the grid; for what is
        read."""
        if self.steps is not None and self.offsets is not None:
            last = self.steps.short() * MOST_CODE4 + self.offsets
            if (self.steps > MOST_STEP).any() or (last > MOST_POINT).any():
                return False
        if self.format.kind == "float" and (self.data.view(torch.uint8) & 127 == 127).any():
            return False  # a code that is no number
        return bool(self.scales.isfinite().all())

    def _each(self, change: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        parts = {name: change(part) for name, part in self.named_parts()}
        return QuantizedTensor(self.format, self.columns, **parts)

    def codes(self) -> Tensor:
        """The codes [N, K], one in a byte: int8 in 8 bits, uint8 in 4; e4m3."""
        if self.format.bits == 8:
            return self.data
        pairs = torch.stack([self.data & 15, self.data >> 4], dim=-1)
        return pairs.flatten(1)[:, : self.columns]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers that are meant, [N, K], reckoned in fp32: the specification."""
        result = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        for start in range(0, len(result), _ROWS):  # so that little fp32 is there at a time
            rows = slice(start, start + _ROWS)
            result[rows] = self.rows(rows)._dequantized()
        return result

    def _dequantized(self) -> Tensor:
        points = self.codes().float()
        if self.steps is not None and self.offsets is not None:
            points = points * self._spread(self.steps, PART)
            points = points + self._spread(self.offsets, PART) - ZERO
        return points * self._spread(self.scales, self.format.group or self.columns)

    def _spread(self, each: Tensor, size: int) -> Tensor:
        """What so many columns have together, at each of them: fp32 [N, K]."""
        size = min(size, self.columns)
        return each.float().repeat_interleave(size, dim=1)[:, : self.columns]


def pieces(
    format: Format, rows: int, columns: int
) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Shape and type of each of ``QuantizedTensor.named_parts`` of a matrix."""
    if format.kind == "float":
        return {"scales": ((rows, 1), torch.float32), "data": ((rows, columns), float8.TYPE)}
    found = {"scales": ((rows, format.groups(columns)), torch.float16)}
    if format.bits == 4:
        for name in ("steps", "offsets"):
            found[name] = ((rows, parts_of(columns)), torch.uint8)
    data = torch.int8 if format.bits == 8 else torch.uint8
    return found | {"data": ((rows, format.row_bytes(columns)), data)}


def pack_pairs(codes: Tensor) -> Tensor:
    """Codes from 0 to 15 [N, K] to bytes [N, (K + 1) // 2]."""
    codes = codes.to(torch.uint8)
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
