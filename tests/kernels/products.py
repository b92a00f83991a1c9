"""Random weights in every packed format, and rows for them."""

from __future__ import annotations

import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.matrix import Format, Matrix, Shape

FORMATS: list[tuple[Format, int]] = [
    ("fp32", 0), ("fp16", 0), ("bf16", 0),
    ("int8", 32), ("int8", 128), ("int8", 256), ("int4", 128), ("int4", 32),
]  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator)


def packed(library: Library, n: int, k: int, format: Format, group: int, **more: bool) -> Matrix:
    """A random weight with a bias."""
    shape = Shape(format, n, k, group, **more)
    return Matrix.of(library, shape, random(n, k), random(n, seed=1))
