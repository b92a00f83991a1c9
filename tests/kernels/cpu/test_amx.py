"""The matrix unit (AMX): its whole numbers are those of vectors, its order in bf16 a row's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.matrix import Finish, Format
from tests.kernels.products import FORMATS, packed, random

COUNTS = [*range(1, 50), 63, 64, 65, 96, 129]


@pytest.fixture
def amx(library: Library) -> Iterator[Library]:
    """The kernels at this level."""
    before = library.level
    if not library.set_level("amx"):
        pytest.skip("this processor has no amx")
    yield library
    library.set_level(before)


@pytest.mark.parametrize(("format", "group"), FORMATS[3:], ids=lambda each: str(each))
@pytest.mark.parametrize("k", [32, 96, 161, 256, 320, 1000])
@pytest.mark.parametrize("gated", [False, True])
def test_quantised_products_have_the_bits_of_vectors(
    amx: Library, format: Format, group: int, k: int, gated: bool
) -> None:
    matrix = packed(amx, 70, k, format, group, gated=gated)
    finish: Finish = "silu_mul" if gated else "store"
    x = random(max(COUNTS), k)
    x[7], x[20, k // 2] = 0.0, float("nan")
    found = [matrix.linear(x[:count], finish) for count in COUNTS]
    assert amx.set_level("avx512")
    for count, of_amx in zip(COUNTS, found, strict=True):
        same(of_amx, matrix.linear(x[:count], finish))


@pytest.mark.parametrize("k", [32, 96, 1024])
@pytest.mark.parametrize("scale", [1.0, 1e-19, 1e18])
def test_halves_are_added_in_one_order(amx: Library, k: int, scale: float) -> None:
    """Also where numbers, products or sums are too small for normal ones, or not finite."""
    matrix = packed(amx, 70, k, "bf16", 0)
    spread = torch.logspace(-3, 0, max(COUNTS))[:, None]
    x = random(max(COUNTS), k) * scale * spread
    x[3], x[5, 1], x[9, 7], x[11] = 0.0, float("inf"), float("nan"), 1e-39
    whole = matrix.linear(x)
    for count in COUNTS:
        same(matrix.linear(x[:count]), whole[:count])
    for row in range(max(COUNTS)):
        same(matrix.linear(x[row : row + 1])[0], whole[row])


def test_small_numbers_are_small_again_afterwards(amx: Library) -> None:
    """The threads are left as they were: a subnormal number is one."""
    for count in (1, 40):
        packed(amx, 70, 64, "bf16", 0).linear(random(count, 64))
        assert (torch.full((64,), 1e-39) * 0.5 > 0).all()


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
