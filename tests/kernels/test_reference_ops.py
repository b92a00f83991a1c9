"""The specification of the operations: right (against fp64), and the same in any batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 3, 8, 17, 31, 48, 97, 172, 256, 1023, 4097]
ROWS = 37


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Equal to an fp64 result, up to rounding to the type found and fp32 arithmetic before."""
    step = torch.finfo(found.dtype).eps
    torch.testing.assert_close(
        found.double(), wanted, rtol=max(step, 2e-5), atol=max(step, 2e-5) * _scale(wanted)
    )


def _scale(wanted: Tensor) -> float:
    return max(1.0, wanted.abs().max().item()) / 4


def assert_rows_alone(op: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Each row has the bits that it has alone, and in any batch, wherever in it."""
    together = op(x)
    rows = x.shape[0]
    for row in range(rows):
        assert torch.equal(op(x[row : row + 1])[0], together[row]), f"row {row} alone"
    for count in range(2, rows):
        begin = (count * 7) % (rows - count + 1)
        part = slice(begin, begin + count)
        assert torch.equal(op(x[part]), together[part]), f"rows {part}"
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(op(x[order]), together[order])


# -- linear -----------------------------------------------------------------------

SHAPES = [(1, 1), (3, 5), (17, 33), (48, 97), (84, 48), (172, 64), (64, 512), (255, 257), (768, 96)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape: tuple[int, int], dtype: torch.dtype) -> None:
    columns, rows = shape
    weight, bias = random(rows, columns, dtype=dtype), random(rows, dtype=dtype)
    x = random(ROWS, columns, dtype=dtype, seed=1)
    for maybe_bias in (None, bias):
        packed = reference.pack_linear(weight, maybe_bias)
        found = reference.linear(x, packed)
        wanted = x.double() @ weight.double().T
        if maybe_bias is not None:
            wanted += bias.double()
        assert found.dtype == dtype
        assert found.shape == (ROWS, rows)
        assert_near(found, wanted)
        assert_rows_alone(lambda y, packed=packed: reference.linear(y, packed), x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(768, 3072), (1024, 4096), (4096, 64), (64, 50257)], ids=str)
def test_wide_linear_rows(shape: tuple[int, int], threads: int, dtype: torch.dtype) -> None:
    columns, rows = shape
    packed = reference.pack_linear(random(rows, columns, dtype=dtype), random(rows, dtype=dtype))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = random(ROWS, columns, dtype=dtype, seed=1)
        assert_rows_alone(lambda y: reference.linear(y, packed), x)
    finally:
        torch.set_num_threads(before)


def test_packing_copies_nothing_that_needs_no_padding() -> None:
    weight = random(32, 48)
    assert reference.pack_linear(weight, None).weight is weight


def test_embedding_is_a_row_of_the_packed_table() -> None:
    table = random(97, 45)
    packed = reference.pack_linear(table, None)
    ids = torch.tensor([96, 0, 3, 3])
    assert torch.equal(reference.embedding(ids, packed), table[ids])


# -- rows -------------------------------------------------------------------------


def naive_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


def naive_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weight.double() + bias.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    x, weight = random(ROWS, width, dtype=dtype), random(width, dtype=dtype)
    found = reference.rms_norm(x, weight, 1e-5)
    assert found.dtype == dtype
    assert_near(found, naive_rms_norm(x, weight))
    assert_rows_alone(lambda y: reference.rms_norm(y, weight, 1e-5), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(width: int, dtype: torch.dtype) -> None:
    x, weight, bias = (
        random(*shape, dtype=dtype, seed=i)
        for i, shape in enumerate([(ROWS, width), (width,), (width,)])
    )
    found = reference.layer_norm(x, weight, bias, 1e-5)
    assert found.dtype == dtype
    assert_near(found, naive_layer_norm(x, weight, bias))
    assert_rows_alone(lambda y: reference.layer_norm(y, weight, bias, 1e-5), x)


# -- element by element -----------------------------------------------------------


def naive_silu_mul(x: Tensor) -> Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def naive_gelu_erf(x: Tensor) -> Tensor:
    return x.double() * (1 + torch.erf(x.double() / math.sqrt(2))) / 2


def naive_gelu_tanh(x: Tensor) -> Tensor:
    x = x.double()
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def naive_gelu_tanh_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return naive_gelu_tanh(gate) * up.double()


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu_mul": (reference.silu_mul, naive_silu_mul),
    "gelu_tanh_mul": (reference.gelu_tanh_mul, naive_gelu_tanh_mul),
    "gelu_erf": (reference.gelu_erf, naive_gelu_erf),
    "gelu_tanh": (reference.gelu_tanh, naive_gelu_tanh),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "width",
    [*WIDTHS[::2], *(pytest.param(width, marks=pytest.mark.slow) for width in WIDTHS[1::2])],
)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, width: int, dtype: torch.dtype) -> None:
    op, naive = ACTIVATIONS[name]
    # As a linear layer hands it on: columns of padding after each row.
    padded = 4 * random(ROWS, 2 * width + 16, dtype=dtype)
    for x in (padded[:, : 2 * width], padded[:, : 2 * width].contiguous()):
        found = op(x)
        assert found.dtype == dtype
        assert_near(found, naive(x))
        assert_rows_alone(op, x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_far_out(name: str) -> None:
    op, naive = ACTIVATIONS[name]
    x = torch.tensor([[-1e4, -100.0, -0.0, 0.0, 100.0, 1e4] * 2])
    torch.testing.assert_close(op(x).double(), naive(x))


# -- rope and the cache -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "rotated"), [(2, 2), (6, 6), (8, 4), (20, 20), (80, 32)])
def test_rope_turns_pairs(dim: int, rotated: int, dtype: torch.dtype) -> None:
    """Dimensions i and i + R/2 are a complex number that is turned by the angle."""
    half = rotated // 2
    x = random(ROWS, 5, dim, dtype=dtype)
    angles = random(ROWS, half, seed=2) * 100
    cos, sin = angles.cos(), angles.sin()
    found = reference.rope(x, cos, sin)
    wanted = x.double()
    pairs = torch.complex(wanted[..., :half], wanted[..., half:rotated])
    turned = pairs * torch.complex(cos.double(), sin.double())[:, None]
    wanted = torch.cat([turned.real, turned.imag, wanted[..., rotated:]], dim=-1)
    assert found.dtype == dtype
    assert_near(found, wanted)
    for row in range(ROWS):
        alone = reference.rope(x[row : row + 1], cos[row : row + 1], sin[row : row + 1])
        assert torch.equal(alone[0], found[row])


def test_int8_codes_are_as_near_as_they_can_be() -> None:
    """Within half a step of what each head's largest number allows; zeros stay zeros."""
    x = random(ROWS, 3, 31) * torch.logspace(-12, 12, ROWS)[:, None, None]
    x[2, 1] = 0.0
    codes, scales = reference.kv_codes(x)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
    torch.testing.assert_close(scales, x.abs().amax(-1) / 127)
    error = (codes.double() * scales[..., None].double() - x.double()).abs()
    assert (error <= 0.5001 * scales[..., None]).all()
    assert (codes[2, 1] == 0).all()
    assert_rows_alone(lambda rows: reference.kv_codes(rows)[0], x)


def test_int8_codes_at_the_edges() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-42, -1e-42], [3e38, -3e38], [127.0, 0.5], [127.0, 1.5]])
    codes, scales = reference.kv_codes(x)
    assert codes.tolist() == [[0, 0], [0, 0], [127, -127], [127, 0], [127, 2]]
    assert scales.isfinite().all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        codes, scales = reference.kv_codes(torch.tensor([[1.0, bad], [1.0, 2.0]]))
        assert (codes * scales[:, None]).isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_the_cache_gives_back_what_was_written(dtype: torch.dtype) -> None:
    storage = KVStorage([KVGroup((0,), 3, 10)], [40], 1, dtype, torch.device("cpu"))
    cache, _ = storage.layer(0)
    x, slots = random(ROWS, 3, 10), torch.randperm(40)[:ROWS]
    reference.write_kv(cache, slots, x)
    rows = slots[:, None] * 3 + torch.arange(3)
    found = reference.read_kv(cache, rows.flatten()).view_as(x)
    step = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.int8: 0.5001 / 127}[dtype]
    assert ((found - x).abs() <= step * x.abs().amax(-1, keepdim=True)).all()
    others = torch.ones(42, dtype=torch.bool)
    others[slots] = False
    assert (cache.data[others] == 0).all()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 40), (torch.int8, 14)], ids=str)
def test_a_tokens_bytes_are_those_that_are_taken(dtype: torch.dtype, size: int) -> None:
    group = KVGroup((0, 1), 3, 10)
    assert group.bytes_per_token(dtype) == 2 * 2 * 3 * size
    storage = KVStorage([group], [7], 4, dtype, torch.device("cpu"))
    tensors = [kept for layer in (0, 1) for kept in storage.layer(layer)]
    parts = [part for kept in tensors for part in (kept.data, kept.scales) if part is not None]
    assert sum(part.nbytes for part in parts) == 9 * 4 * group.bytes_per_token(dtype)
