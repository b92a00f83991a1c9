"""What happens to rows between matrix products: against the reference, at every level."""

from __future__ import annotations

from ctypes import byref
from math import inf

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.cpu import structs
from rosellm.roseinfer.kernels.cpu.library import Library, address

SHAPES = [(1, 1), (1, 1024), (2, 7), (3, 63), (17, 64), (33, 129), (300, 40), (5, 4097)]
CUT = [1, 2, 17, 128]


def rows_of(x: Tensor) -> object:
    return byref(structs.Activations.of(x))


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale


class Operations:
    """The native operations as functions of tensors."""

    def __init__(self, library: Library) -> None:
        self._c = library.c

    def rms_norm(self, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x)
        added = None if residual is None else rows_of(residual)
        self._c.rose_rms_norm(rows_of(x), rows_of(out), weight.data_ptr(), 1e-6, added)
        return out

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(x)
        places = weight.data_ptr(), address(bias)
        self._c.rose_layer_norm(rows_of(x), rows_of(out), *places, 1e-5)
        return out

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self._c.rose_add(rows_of(x), rows_of(other), rows_of(out))
        return out


@pytest.fixture
def operations(library):
    return Operations(library)


def assert_close(found: Tensor, wanted: Tensor, error: float = 2e-6) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=error, atol=error)


# -- Norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(operations, level, shape):
    x, weight = normal(*shape, scale=3.0), normal(shape[1]) + 1
    wanted = reference.rms_norm(x.double(), weight, 1e-6)
    assert_close(operations.rms_norm(x, weight), wanted, 1e-5)
    residual = normal(*shape, scale=2.0)
    added = operations.rms_norm(x, weight, residual)
    assert torch.equal(added, residual + operations.rms_norm(x, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_norm(operations, level, shape):
    x, weight, bias = normal(*shape) + 5, normal(shape[1]) + 1, normal(shape[1])
    wanted = torch.nn.functional.layer_norm(
        x.double(), shape[1:], weight.double(), bias.double(), 1e-5
    )
    assert_close(operations.layer_norm(x, weight, bias), wanted, 3e-5)
    assert_close(operations.layer_norm(x, weight, None), wanted - bias, 3e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(operations, level, shape):
    x, other = normal(*shape, scale=30.0), normal(*shape)
    assert torch.equal(operations.add(x, other), x + other)


@pytest.mark.parametrize("width", [1, 40, 129, 1030])
def test_bits_are_the_rows_own(operations, level, threads, width):
    x, weight, bias = normal(300, width), normal(width), normal(width)
    functions = [
        lambda x: operations.rms_norm(x, weight),
        lambda x: operations.layer_norm(x, weight, bias),
    ]
    for function in functions:
        whole = function(x)
        for count in CUT:
            parts = torch.cat([function(part) for part in x.split(count)])
            assert torch.equal(parts.view(torch.int32), whole.view(torch.int32))


def test_in_place_with_strides_and_nothing_else_is_touched(library, level):
    for width in (5, 64, 77):
        wide = torch.full((9, width + 20), 7.0)
        inner = wide[1:-1, 10 : 10 + width]
        x, weight = normal(7, width), torch.ones(width)
        inner.copy_(x)
        library.c.rose_rms_norm(rows_of(inner), rows_of(inner), weight.data_ptr(), 1e-6, None)
        assert_close(inner, reference.rms_norm(x.double(), weight, 1e-6), 1e-5)
        inner.fill_(7.0)
        assert (wide == 7.0).all()


# -- From a projection to attention ------------------------------------------------------------


class Projection:
    """Fused rows, and what should become of them by the reference."""

    def __init__(
        self, count, heads, kv_heads, dim, rotary, dtype, norm=None, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed + dim)
        self.heads, self.kv_heads, self.dim, self.rotary = heads, kv_heads, dim, rotary
        self.qkv = torch.randn(count, (heads + 2 * kv_heads) * dim, generator=generator)
        positions = torch.randint(0, 50, (count,), generator=generator)
        angles = torch.rand(50, rotary // 2, generator=generator) * 6
        self.cos, self.sin, self.positions = angles.cos(), angles.sin(), positions
        self.slots = torch.randperm(count + 5, generator=generator)[:count]
        group = KVGroup((0,), kv_heads, dim)
        self.storage = KVStorage([group], [count + 4], 1, dtype, torch.device("cpu"))
        for cache in self.storage.layer(0):
            cache.data.fill_(3)
        widths = {"head": (dim, dim), "all": (heads * dim, kv_heads * dim), None: (0, 0)}[norm]
        self.norms = [torch.rand(width, generator=generator) + 0.5 for width in widths]
        self.normed = norm is not None

    def wanted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values: [T, heads, D] in fp64."""
        counts = [self.heads, self.kv_heads, self.kv_heads]
        parts = self.qkv.double().unflatten(1, (-1, self.dim)).split(counts, dim=1)
        q, k, v = (part.clone() for part in parts)
        if self.normed:
            q, k = (
                reference.rms_norm(part.reshape(len(part), -1, len(weight)), weight, 1e-6).view_as(
                    part
                )
                for part, weight in zip((q, k), self.norms, strict=True)
            )
        cos, sin = (table[self.positions].double() for table in (self.cos, self.sin))
        q, k = (rotated(part, cos, sin) for part in (q, k))
        return q, k, v

    def run(self, library: Library, q: Tensor, rows: slice = slice(None)) -> None:
        """Write queries to q [T, heads * D], keys and values to the caches."""
        qkv, positions, slots = self.qkv[rows], self.positions[rows], self.slots[rows]
        call = structs.QkvToCache(
            structs.Activations.of(qkv),
            structs.Activations.of(q),
            self.heads,
            *(weight.data_ptr() if self.normed else None for weight in self.norms),
            *(len(weight) for weight in self.norms),
            1e-6,
            self.rotary,
            self.cos.data_ptr(),
            self.sin.data_ptr(),
            positions.data_ptr(),
            slots.data_ptr(),
        )
        cache = structs.KvCache.of(*self.storage.layer(0))
        library.c.rose_qkv_to_cache(byref(call), byref(cache))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


# rows, heads, KV heads, head dim, rotated
PROJECTIONS = [
    (1, 16, 8, 128, 128),
    (7, 4, 2, 64, 32),
    (3, 3, 1, 10, 6),
    (20, 2, 2, 31, 0),
    (130, 4, 4, 96, 96),
    (5, 2, 1, 256, 256),
]


@pytest.mark.parametrize("norm", [None, "head", "all"])
@pytest.mark.parametrize("shape", PROJECTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_projections_reach_the_cache(library, level, dtype, shape, norm):
    made = Projection(*shape, dtype, norm)
    q = made.qkv.new_empty(shape[0], made.heads * made.dim)
    made.run(library, q)
    wanted_q, *wanted = made.wanted()
    assert_close(q, wanted_q.flatten(1), 1e-5)
    error = max(torch.finfo(dtype).eps / 2, 1e-5)
    for kept, part in zip(made.storage.layer(0), wanted, strict=True):
        cache = kept.data
        torch.testing.assert_close(cache[made.slots].double(), part, rtol=error * 1.01, atol=1e-5)
        untouched = torch.ones(len(cache), dtype=torch.bool)
        untouched[made.slots] = False
        assert (cache[untouched] == 3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_rounded_to_the_nearest_even(library, level, dtype):
    """Bit for bit what torch makes of values that are stored as they come."""
    made = Projection(300, 1, 2, 40, 0, dtype)
    values = made.qkv[:, -80:].view(300, 2, 40)
    step = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    values[:, 0] = 1 + (torch.arange(300)[:, None] % 256 + 0.5) * step  # halfway between two
    values[:, 1, ::4] *= 1e4
    values[:, 1, 1::4] *= 1e-3
    values[0, 1, :8] = torch.tensor([inf, -inf, 3.4e38, -3.39e38, -0.0, 1e-40, -1e-45, 65519.0])
    values[1, 1, 2::3] = float("nan")
    made.run(library, torch.empty(300, 40))
    kept, wanted = made.storage.layer(0)[1].data[made.slots], values.to(dtype)
    assert torch.equal(kept.isnan(), wanted.isnan())
    bits, wanted_bits = (x[~wanted.isnan()].view(torch.int16) for x in (kept, wanted))
    assert torch.equal(bits, wanted_bits)


def test_queries_may_stay_where_they_are(library, level):
    made = Projection(9, 4, 2, 64, 32, torch.float32, "all")
    wanted_q, wanted_k, _ = made.wanted()
    made.run(library, made.qkv[:, : 4 * 64])
    assert_close(made.qkv[:, : 4 * 64], wanted_q.flatten(1), 1e-5)
    assert_close(made.storage.layer(0)[0].data[made.slots], wanted_k, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("shape", PROJECTIONS, ids=str)
def test_bits_of_a_projection_are_the_rows_own(library, level, threads, shape, dtype):
    whole, parts = (Projection(*shape, dtype, "head") for _ in range(2))
    count = shape[0]
    at_once = torch.empty(count, whole.heads * whole.dim)
    one_by_one = torch.empty_like(at_once)
    whole.run(library, at_once)
    for row in range(count):
        parts.run(library, one_by_one[row : row + 1], slice(row, row + 1))
    assert torch.equal(at_once, one_by_one)
    for a, b in zip(whole.storage.layer(0), parts.storage.layer(0), strict=True):
        assert torch.equal(a.data, b.data)
        assert dtype != torch.int8 or torch.equal(a.scales, b.scales)


@pytest.mark.parametrize("norm", [None, "head", "all"])
@pytest.mark.parametrize("shape", PROJECTIONS, ids=str)
def test_int8_keeps_a_scale_of_each_head(library, level, shape, norm):
    made = Projection(*shape, torch.int8, norm)
    made.qkv[0] = 0.0
    made.run(library, torch.empty(shape[0], made.heads * made.dim))
    _, *wanted = made.wanted()
    for cache, part in zip(made.storage.layer(0), wanted, strict=True):
        scale = cache.scales[made.slots][..., None].double()
        torch.testing.assert_close(scale, part.abs().amax(-1, keepdim=True) / 127)
        codes = cache.data[made.slots]
        assert ((codes.double() * scale - part).abs() <= scale * 0.501).all()
        untouched = torch.ones(len(cache.data), dtype=torch.bool)
        untouched[made.slots] = False
        assert (cache.data[untouched] == 3).all()
        assert (cache.scales[untouched] == 0).all()


def extremes(dim: int) -> Tensor:
    """Heads [N, dim] whose codes are at the edges of what there is."""
    rows = [
        torch.zeros(dim),
        torch.full((dim,), 1e-42),  # a scale without a reciprocal
        torch.full((dim,), -3e38),
        torch.linspace(-127, 127, dim),
        (torch.arange(dim) % 127 + 0.5).index_fill(0, torch.tensor([0]), 127.0),  # halfway
        torch.full((dim,), -1e-30).index_fill(0, torch.tensor([dim - 1]), 5.0),
        *normal(40, dim) * torch.logspace(-20, 20, 40)[:, None],
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("dim", [2, 10, 31, 64, 128, 256])
def test_int8_is_what_the_reference_makes_bit_for_bit(library, level, dim):
    """Of values, which reach the cache as they are."""
    values = extremes(dim)
    made = Projection(len(values), 1, 1, dim, 0, torch.int8)
    made.qkv[:, 2 * dim :] = values
    made.run(library, torch.empty(len(values), dim))
    found = made.storage.layer(0)[1]
    codes, scales = reference.kv_codes(values)
    assert torch.equal(found.data[made.slots, 0], codes)
    assert torch.equal(found.scales[made.slots, 0], scales)
    assert codes.abs().max() == 127


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_seen_in_int8_too(library, level, bad):
    for at in (0, 9, 30):
        made = Projection(3, 1, 2, 31, 0, torch.int8)
        made.qkv[1, 31 * 3 + at] = bad  # of the first head's values
        made.run(library, torch.empty(3, 31))
        values = made.storage.layer(0)[1]
        read = values.data[made.slots].float() * values.scales[made.slots][..., None]
        assert read[1, 0].isnan().all()
        read[1, 0] = 0.0
        assert read.isfinite().all()
