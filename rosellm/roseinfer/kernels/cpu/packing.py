"""Quantised weights as the kernels lay them out, as bytes of a file that can be mapped."""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.matrix import ALIGNMENT, Codes, Matrix, Shape
from rosellm.roseinfer.kernels.cpu.matrix import Format as Kind
from rosellm.roseinfer.quant.formats import GROUPS, Bits, Format, parts_of
from rosellm.roseinfer.quant.tensor import MOST_CODE4, MOST_CODE8, MOST_POINT, MOST_STEP

_KINDS: dict[Bits, Kind] = {8: "int8", 4: "int4"}
_ROWS, _COLUMNS = 50, 333


def shape_of(form: Format, rows: int, columns: int, gated: bool) -> Shape:
    """A quantised weight [rows, columns] as the kernels know it."""
    return Shape(_KINDS[form.bits], rows, columns, group=form.group, gated=gated)


class Packing:
    """Sizes and views of packed bytes."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @cached_property
    def layout(self) -> str:
        """A name for how numbers lie in packed weights: bytes of one name mean the same.

        Made of what packing makes of a few weights, so no change of it can be forgotten.
        """
        digest = hashlib.sha256()
        for form in (Format(bits, group) for bits in _KINDS for group in GROUPS):
            for gated in (False, True):
                shape = shape_of(form, _ROWS, _COLUMNS, gated)
                matrix = Matrix.empty(self._library, shape)
                matrix.pack_codes(_example(form))
                digest.update(matrix.data.numpy().tobytes())
        return digest.hexdigest()[:16]

    def num_bytes(self, shape: Shape) -> int:
        """Bytes of a packed weight, whole cache lines."""
        size = shape.num_bytes(self._library)
        assert size % ALIGNMENT == 0, "what comes after it in a file would not be aligned"
        return size

    def of(self, data: Tensor, shape: Shape, bias: Tensor | None) -> Matrix:
        """The weight whose bytes these are: uint8, aligned; they are not copied."""
        return Matrix(self._library, shape, data, None if bias is None else bias.float())


def _example(form: Format) -> Codes:
    """Numbers by which every place of a layout can be told from others."""

    def numbers(width: int, most: int) -> Tensor:
        count = torch.arange(_ROWS * width, dtype=torch.int64)
        return (count * 2654435761 % 65521 % (most + 1)).view(_ROWS, width)

    scales = (numbers(form.groups(_COLUMNS), 1000) + 1).float() / 1024
    if form.bits == 8:
        codes = numbers(_COLUMNS, 2 * MOST_CODE8) - MOST_CODE8
        return Codes(codes.to(torch.int8), scales)
    codes, steps = numbers(_COLUMNS, MOST_CODE4), numbers(parts_of(_COLUMNS), MOST_STEP)
    offsets = numbers(parts_of(_COLUMNS), MOST_POINT) % (MOST_POINT + 1 - MOST_CODE4 * steps)
    codes, steps, offsets = (each.to(torch.uint8) for each in (codes, steps, offsets))
    return Codes(codes, scales, steps, offsets)
