"""In which form each matrix of a model is held. No numbers here, and no torch.

``Recipe.of`` is the one place where that is decided, by a parameter's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bits = Literal[4, 8]
Kind = Literal["int", "float"]

PART = 32
"""Columns that share a step and an offset in 4 bits."""

GROUPS = (32, 64, 128, 256)
"""How many columns may share a scale."""

_SCALE_BYTES = 2  # fp16
_ROW_SCALE_BYTES = 4  # fp32: a row's scale has no part in the codes' range
_PART_BYTES = 2  # a step and an offset, a byte each


@dataclass(frozen=True)
class Format:
    """How the numbers of a matrix [N, K] are kept; ``QuantizedTensor`` says what the bits mean.

    Attributes:
        bits: of a number.
        group: neighbours in a row that share a scale, one of ``GROUPS``, the row's last group
            perhaps fewer; 0 for floats, of which a whole row does.
        kind: whole numbers, or e4m3 floats of 8 bits (``kernels.float8``).
    """

    bits: Bits
    group: int
    kind: Kind = "int"

    def __post_init__(self) -> None:
        if self.kind == "float":
            if (self.bits, self.group) != (8, 0):
                raise ValueError("floats have 8 bits, and a scale for each row")
            return
        if self.group not in GROUPS:
            raise ValueError(
                f"groups of {self.group}: must be one of {', '.join(map(str, GROUPS))}"
            )

    @property
    def name(self) -> str:
        """As people read it.

        >>> Format(4, 128).name
        'int4 in groups of 128'
        """
        if self.kind == "float":
            return "fp8 with a scale for each row"
        return f"int{self.bits} in groups of {self.group}"

    @property
    def label(self) -> str:
        """In a word.

        >>> Format(8, 0, "float").label
        'fp8'
        """
        return "fp8" if self.kind == "float" else f"int{self.bits}"

    def groups(self, columns: int) -> int:
        """How many scales a row has."""
        return -(-columns // self.group) if self.group else 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row's codes: two of 4 bits in one, the last one perhaps alone."""
        return columns if self.bits == 8 else (columns + 1) // 2

    def num_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix with all that belongs to it."""
        parts = _PART_BYTES * parts_of(columns) if self.bits == 4 else 0
        scale = _ROW_SCALE_BYTES if self.kind == "float" else _SCALE_BYTES
        return rows * (self.row_bytes(columns) + scale * self.groups(columns) + parts)


def parts_of(columns: int) -> int:
    """How many parts a row has in 4 bits, the last one perhaps cut short."""
    return -(-columns // PART)


FORMATS = {"int8": Format(8, 32), "int4": Format(4, 128), "fp8": Format(8, 0, "float")}
"""What the names of ``--quantization`` stand for."""

HEAD_BESIDE_INT4 = Format(8, 128)
"""A head in int8 where blocks are in int4: finer groups would cost time, and gain next to nothing
beside what the blocks lose."""


@dataclass(frozen=True)
class Recipe:
    """What is quantised, and how; None is left in the model's own type.

    Attributes:
        layers: the products of all blocks, experts' too.
        head: the product at the end, and the table of embeddings where it is the same one.
    """

    layers: Format | None = None
    head: Format | None = None

    @property
    def labels(self) -> tuple[str, str]:
        """Both in a word, whatever the size of groups."""
        layers, head = (each.label if each else "" for each in (self.layers, self.head))
        return layers, head

    def of(self, module: str) -> Format | None:
        """The format of the matrix of a module, by its name in the model.

        Norms, tables that are only looked up, and routers stay as they are: they are small, or
        a row of them at a time is read, or all that follows hangs on them.
        """
        if module in ("head", "embed"):  # only a table that the head shares asks
            return self.head
        if module.startswith("blocks.") and not module.endswith(".router"):
            return self.layers
        return None
