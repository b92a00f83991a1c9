"""Weights packed for the native product, and that product.

``kernels.h`` says what the structs mean, ``matmul.h`` how a packed weight lies in memory. A packed
weight is one tensor of bytes, the same for every dispatch level: it can be a part of a mapped file.
"""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rosellm.roseinfer import large_pages
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.logits import Logits

Format = Literal["fp32", "fp16", "bf16", "int8", "int4"]
Finish = Literal["store", "add", "gelu_tanh", "gelu_erf", "silu_mul", "gelu_tanh_mul"]

FORMATS: dict[Format, int] = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3, "int4": 4}
FINISHES: dict[Finish, int] = {
    "store": 0, "add": 1, "gelu_tanh": 2, "gelu_erf": 3, "silu_mul": 4, "gelu_tanh_mul": 5,
}  # fmt: skip
PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

PART = 32
"""Inputs of an int4 group that share a step and an offset."""

INT4_GROUP = 128
ALIGNMENT = 64
"""Of weights and of rows of logits, in bytes: a cache line."""

TOP = 32
"""Outputs that share a top, see kernels.h."""


@dataclass(frozen=True)
class Codes:
    """Rows of a quantised weight; a row's last group and part may be cut short.

    A number is, in int8, scale * code; in int4, scale * (step * code + offset - 128), where
    15 * step + offset <= 255.

    Attributes:
        codes: [rows, k]: int8; or uint8, 0 to 15.
        scales: fp32 [rows, groups], each one exact in fp16.
        steps, offsets: of int4: uint8 [rows, parts], a step at most 15.
    """

    codes: Tensor
    scales: Tensor
    steps: Tensor | None = None
    offsets: Tensor | None = None


@dataclass(frozen=True)
class Shape:
    """What a packed weight is.

    Attributes:
        n, k: outputs and inputs.
        group: in int8 and int4, how many inputs share a scale: a multiple of 32 up to 256, and
            128 in int4. Activations are quantised in the same groups.
        gated: the first half of the outputs are gates of the second; their tiles alternate.
    """

    format: Format
    n: int
    k: int
    group: int = 0
    gated: bool = False

    def struct(self, data: int | None = None, bias: int | None = None) -> structs.Matrix:
        return structs.Matrix(
            FORMATS[self.format], self.group, int(self.gated), 0, self.n, self.k, data, bias
        )

    def num_bytes(self, library: Library) -> int:
        """Bytes when packed.

        Raises:
            ValueError: there is no such weight.
        """
        size = int(library.c.rose_packed_bytes(byref(self.struct())))
        if not size:
            raise ValueError(f"no weight can be packed as {self}")
        return size


@dataclass(frozen=True)
class Matrix:
    """A packed weight.

    Attributes:
        data: uint8 [bytes], aligned to 64 bytes.
        bias: fp32 [n], or None.
    """

    library: Library
    shape: Shape
    data: Tensor
    bias: Tensor | None = None

    @classmethod
    def empty(cls, library: Library, shape: Shape, bias: Tensor | None = None) -> Matrix:
        """One whose rows are yet to be packed."""
        size = shape.num_bytes(library)
        if size < large_pages.LARGE_PAGE:
            return cls(library, shape, torch.zeros(size, dtype=torch.uint8), bias)
        return cls(library, shape, torch.from_numpy(large_pages.zeros(size)), bias)

    @classmethod
    def of(
        cls, library: Library, shape: Shape, weight: Tensor, bias: Tensor | None = None
    ) -> Matrix:
        """A weight [n, k] in fp32, fp16 or bf16."""
        packed = cls.empty(library, shape, bias)
        packed.pack(weight)
        return packed

    def __post_init__(self) -> None:
        assert self.data.data_ptr() % ALIGNMENT == 0, "kernels read whole cache lines"
        assert len(self.data) == self.shape.num_bytes(self.library), "other data than its shape's"
        assert self.bias is None or self.bias.dtype == torch.float32

    @cached_property
    def struct(self) -> structs.Matrix:
        """As the kernels take it, valid while this is alive."""
        bias = None if self.bias is None else self.bias.data_ptr()
        return self.shape.struct(self.data.data_ptr(), bias)

    @property
    def columns(self) -> int:
        """Width of a product."""
        return self.shape.n // 2 if self.shape.gated else self.shape.n

    def pack(self, weight: Tensor, first: int = 0) -> None:
        """Fill rows from ``first`` on; int8 and int4 are rounded to nearest."""
        assert weight.shape[1] == self.shape.k
        assert first + len(weight) <= self.shape.n
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        rows = structs.Plain(PLAIN[weight.dtype], 0, weight.data_ptr(), weight.stride(0))
        self.library.c.rose_pack(byref(self.struct), first, len(weight), byref(rows))

    def pack_codes(self, rows: Codes, first: int = 0) -> None:
        """Fill rows from ``first`` on with numbers in the form of int8 or int4."""
        parts = (rows.codes, rows.scales, rows.steps, rows.offsets)
        kept = [None if part is None else part.contiguous() for part in parts]
        struct = structs.Codes(*(None if part is None else part.data_ptr() for part in kept))
        self.library.c.rose_pack_codes(byref(self.struct), first, len(rows.codes), byref(struct))

    def linear(
        self,
        x: Tensor,
        finish: Finish = "store",
        out: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """finish(x W^T + bias).

        Args:
            x: fp32 [T, k], rows contiguous.
            out: fp32 [T, columns], rows contiguous; "add" adds to it.
            index: int64 [T], rows of x that are meant; None: all of them.
        """
        count = len(x) if index is None else len(index)
        out = x.new_empty(count, self.columns) if out is None else out
        rows = structs.Rows(
            x.data_ptr(), x.stride(0), count, None if index is None else index.data_ptr()
        )
        self.library.c.rose_linear(
            byref(rows),
            byref(self.struct),
            FINISHES[finish],
            out.data_ptr(),
            out.stride(0),
        )
        return out

    def logits(self, x: Tensor) -> Logits:
        """x W^T + bias of a weight that is not gated, and what is known of it.

        Args:
            x: fp32 [T, k], rows contiguous.

        Returns:
            Tops: the largest of every ``TOP`` values, [T, 2, blocks of 2 * TOP outputs].
        """
        room, target = self.room_for_logits(len(x))
        rows = structs.Rows(x.data_ptr(), x.stride(0), len(x))
        self.library.c.rose_logits(byref(rows), byref(self.struct), byref(target))
        return Logits(*room)

    def room_for_logits(self, count: int) -> tuple[tuple[Tensor, Tensor, Tensor], structs.Logits]:
        """Where the parts of ``Logits`` will be for so many rows, and as kernels are told."""
        size = self.shape.n
        # each row begins a line, so that no store is in two of them
        line = ALIGNMENT // torch.float32.itemsize
        values = torch.empty(count, -(-size // line) * line)[:, :size]
        tops = torch.empty(count, 2, -(-size // (2 * TOP)))
        finite = torch.empty(count, dtype=torch.bool)
        target = structs.Logits(structs.Activations.of(values), tops.data_ptr(), finite.data_ptr())
        return (values, tops, finite), target

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows ids [T], int64, of the weight: fp32 [T, k]."""
        rows = torch.empty(len(ids), self.shape.k)
        self.library.c.rose_lookup(
            byref(self.struct), ids.data_ptr(), len(ids), rows.data_ptr(), rows.stride(0)
        )
        return rows
