"""Norms, activations, lookups, and heads on their way to the cache, by Triton's interpreter."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.layers.rope import RopeSpec

from tests.kernels.triton import interpreted  # isort: skip
from rosellm.roseinfer.kernels.triton import rows  # isort: skip
from rosellm.roseinfer.kernels.triton.heads import to_cache  # isort: skip

assert interpreted.triton.knobs.runtime.interpret
# numpy tells of infinities that the kernels mean
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [1, 33, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms(dtype: torch.dtype, width: int) -> None:
    x, weight, bias = values(3, width, dtype=dtype), values(width, seed=1), values(width, seed=2)
    close(rows.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    if width > 1:
        wanted = reference.layer_norm(x, weight, bias, 1e-5)
        close(rows.layer_norm(x, weight, bias, 1e-5), wanted)
    assert torch.equal(rows.rms_norm(x[1:2], weight, 1e-5), rows.rms_norm(x, weight, 1e-5)[1:2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_and_its_norm_are_the_two_operations_in_bits(dtype: torch.dtype) -> None:
    x, y = values(3, 21, dtype=dtype), values(3, 21, seed=1, dtype=dtype)
    weight, bias = values(21, seed=2, dtype=dtype), values(21, seed=3, dtype=dtype)
    total, normed = rows.sum_norm(x, y, weight, None, 1e-6)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, rows.rms_norm(x + y, weight, 1e-6))
    assert torch.equal(
        rows.sum_norm(x, y, weight, bias, 1e-6)[1], rows.layer_norm(x + y, weight, bias, 1e-6)
    )


@pytest.mark.parametrize("kind", get_args(Activation))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(dtype: torch.dtype, kind: Activation) -> None:
    x = torch.cat([values(2, 42, dtype=dtype) * 4, torch.full((1, 42), -60.0, dtype=dtype)])
    close(rows.activate(x, kind), reference.ACTIVATIONS[kind](x))


def test_a_lookup() -> None:
    table = values(7, 48, dtype=torch.bfloat16)
    ids = torch.tensor([6, 0, 6, 3])
    assert torch.equal(rows.lookup(ids, table[:, :37]), table[ids, :37])


SHAPES = [(4, 2, 16), (3, 1, 10), (5, 5, 20)]


@pytest.mark.parametrize("kv", [None, torch.int8], ids=str)
@pytest.mark.parametrize("rotary", [None, 8])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, DTYPES, strict=True)), ids=str)
def test_heads_to_the_cache(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    normed: bool,
    rotary: int | None,
    kv: torch.dtype | None,
) -> None:
    count, kv_heads, dim = shape
    qkv = values(3, (count + 2 * kv_heads) * dim + 5, dtype=dtype)[:, :-5]
    rope = None if rotary is None else RopeSpec(10000.0, rotary)
    heads = Heads(count, kv_heads, dim, 0, 0, rope, 1.0, None)
    norms = HeadNorms(values(dim, seed=1), values(dim, seed=2), 1e-6) if normed else None
    angles = None
    if rotary is not None:
        angle = values(3, rotary // 2, seed=3)
        angles = angle.cos(), angle.sin()
    slots = torch.tensor([9, -1, 2])
    caches = [
        KVStorage([KVGroup((0,), kv_heads, dim)], [2], 4, kv or dtype, CPU).layer(0)
        for _ in range(2)
    ]
    q = to_cache(qkv, heads, norms, angles, caches[0], slots)
    parts = qkv.unflatten(1, (-1, dim)).split([count, kv_heads, kv_heads], dim=1)
    wanted = [part.contiguous() for part in parts]
    for index, weight in enumerate([norms.q, norms.k] if norms else []):
        wanted[index] = reference.rms_norm(wanted[index], weight, 1e-6)
    if angles is not None:
        wanted[:2] = [reference.rope(part, *angles) for part in wanted[:2]]
    close(q, wanted[0])
    for found, expected, part in zip(*caches, wanted[1:], strict=True):
        reference.write_kv(expected, slots[::2], part[::2])
        exact = not normed and rotary is None
        if found.scales is None:
            close(found.data, expected.data)
            continue
        torch.testing.assert_close(found.scales, expected.scales, rtol=1e-2, atol=0)
        assert (found.data.int() - expected.data.int()).abs().max() <= (0 if exact else 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e-45])
def test_codes_of_what_is_no_number(value: float) -> None:
    heads = Heads(1, 1, 4, 0, 0, None, 1.0, None)
    qkv = values(2, 12)
    qkv[1, 5] = qkv[1, 9] = value
    if value == 1e-45:
        qkv[1] = value
    found, wanted = (
        KVStorage([KVGroup((0,), 1, 4)], [1], 2, torch.int8, CPU).layer(0) for _ in range(2)
    )
    to_cache(qkv, heads, None, None, found, torch.arange(2))
    for ours, theirs, first in zip(found, wanted, (4, 8), strict=True):
        reference.write_kv(theirs, torch.arange(2), qkv[:, None, first : first + 4])
        assert torch.equal(ours.data, theirs.data)
        torch.testing.assert_close(ours.scales, theirs.scales, rtol=0, atol=0, equal_nan=True)
