"""Products in Triton, by its interpreter: against the reference, and a row's bits in any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.triton import tiles
from rosellm.roseinfer.kernels.triton.packing import pack, packed_bytes
from rosellm.roseinfer.kernels.triton.tiles import Card
from rosellm.roseinfer.quant.formats import FORMATS, Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor

from tests.kernels.triton import interpreted  # isort: skip
from rosellm.roseinfer.kernels.triton.products import Products, Weight  # isort: skip

CPU = torch.device("cpu")
CARD = Card(processors=4, shared=100 << 10)
FORMS = {None: None, **FORMATS, "int8 in 64": Format(8, 64), "int4 in 32": Format(4, 32)}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

assert interpreted.triton.knobs.runtime.interpret


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """K is cut into parts already where it is short: the interpreter is slow."""
    monkeypatch.setattr(tiles, "_SHORTEST_PART", 128)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized(rows: int, columns: int, form: Format) -> QuantizedTensor:
    return quantize(values(rows, columns, seed=1) / columns**0.5, form, search=False)


def pair(
    rows: int,
    columns: int,
    form: Format | None,
    dtype: torch.dtype,
    activation: Activation | None = None,
    products: Products | None = None,
    bias: bool = True,
) -> tuple[Weight, reference.PackedLinear]:
    """A weight for the kernels, and the same one for the reference."""
    products = products or Products(CPU, card=CARD)
    added = values(rows, seed=2, dtype=dtype) if bias else None
    if form is None:
        weight = (values(rows, columns, seed=1) / columns**0.5).to(dtype)
        return (
            products.pack_linear(weight, added, activation),
            reference.pack_linear(weight, added, activation),
        )
    few = quantized(rows, columns, form)
    return (
        products.pack_quantized(few, added, activation, dtype),
        reference.pack_quantized(few, added, activation, dtype),
    )


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    worst = (found.double() - wanted.double()).abs().max()
    assert worst <= TOLERANCE[dtype] * wanted.double().abs().max()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("m", "n", "k", "dtype"),
    [(1, 17, 33, torch.bfloat16), (3, 70, 150, torch.float32), (19, 66, 300, torch.bfloat16)],
)
def test_products_are_the_references(m, n, k, dtype, name, short_parts):
    ours, meant = pair(n, k, FORMS[name], dtype, bias=m > 1)
    x = values(m, k, dtype=dtype)
    found = Products(CPU, card=CARD).linear(x, ours)
    assert_near(found, reference.linear(x, meant), dtype)


@pytest.mark.parametrize("name", [None, "int4"])
@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations(activation, name):
    ours, meant = pair(70, 150, FORMS[name], torch.float16, activation)
    x = values(5, 150, dtype=torch.float16)
    found = Products(CPU, card=CARD).linear(x, ours)
    assert_near(found, reference.linear(x, meant), torch.float16)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of overflows
def test_activations_of_large_numbers():
    ours, meant = pair(16, 16, None, torch.float32, "gelu_tanh_mul")
    x = values(4, 16) * 1e4
    torch.testing.assert_close(
        Products(CPU, card=CARD).linear(x, ours), reference.linear(x, meant), rtol=1e-4, atol=1e-3
    )


# -- bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gated"),
    [(None, False), (None, True), ("int4", False), ("fp8", True)]
    + [pytest.param("int8", each, marks=pytest.mark.slow) for each in (False, True)],
)
def test_a_row_has_the_same_bits_in_any_batch(name, gated, short_parts):
    """Over all heights of tiles, and with parts of K in one program and in several."""
    products = Products(CPU, card=CARD)
    ours, _ = pair(36, 270, FORMS[name], torch.bfloat16, "silu_mul" if gated else None)
    x = values(40, 270, dtype=torch.bfloat16)
    together = products.linear(x, ours)
    for rows in (slice(39, 40), slice(3, 23)):
        assert torch.equal(products.linear(x[rows], ours), together[rows])


@pytest.mark.parametrize("name", [None, "fp8"])
def test_spread_parts_are_summed_as_one_program_does(name, short_parts):
    """With few processors none are: that is a matter of time alone."""
    weight, _ = pair(70, 300, FORMS[name], torch.bfloat16)
    x = values(30, 300, dtype=torch.bfloat16)
    assert tiles.parts(70, 300, 64, 2)[0] == tiles.parts(70, 300, 64, 100)[0] == 2
    one, several = (Products(CPU, card=replace(CARD, processors=each)) for each in (2, 100))
    assert torch.equal(one.linear(x, weight), several.linear(x, weight))


@pytest.mark.parametrize("name", [None, "int4"])
def test_all_tiles_are_tried(name, short_parts, monkeypatch):
    weight, _ = pair(64, 256, FORMS[name], torch.float32)
    x = values(2, 256)
    products = Products(CPU, card=CARD)
    assert products._tiles_agree(x, weight)
    tried = []
    compute = Products._compute

    def wrong_where_spread(self, x, weight, tile, parts):
        tried.append((tile.rows, parts.spread))
        found = compute(self, x, weight, tile, parts)
        return found + 1 if parts.spread and len(tried) > 3 else found

    monkeypatch.setattr(Products, "_compute", wrong_where_spread)
    assert not products._tiles_agree(x, weight)
    assert {spread for _, spread in tried} == {False, True}


def test_parts_depend_on_the_weight_alone_and_cover_it():
    for columns in (64, 1024, 4096, 151936):
        for k in (1, 64, 1000, 1024, 4096, 14336, 14337):
            for block_k in (32, 64, 128):
                count, size = tiles.parts(columns, k, block_k, 132)
                assert size % block_k == 0
                assert (count - 1) * size < k <= count * size
                assert count == 1 or size >= 512
    assert tiles.parts(4096, 4096, 64, 132) == (8, 512)
    assert tiles.parts(151936, 4096, 64, 132)[0] == 1


def test_tiles_fit_their_card():
    small = Card(processors=40, shared=99 << 10)
    for rows in (1, 16, 17, 64, 65, 300, 4096):
        for among, step in ((tiles.TILES, 128), (tiles.PACKED_TILES, 256), (tiles.WIDE_TILES, 128)):
            for gated in (False, True):
                tile = tiles.choose(among, rows, 4096, 1, gated, small, step)
                held = (tile.rows + tile.columns * (1 + gated)) * step * tile.stages
                assert held <= small.shared
                assert tile.rows < 2 * max(rows, 9)
    large = Card(processors=132, shared=227 << 10)
    assert tiles.choose(tiles.TILES, 4096, 4096, 1, False, large, 128) == tiles.TILES[0]
    assert tiles.choose(tiles.TILES, 4096, 4096, 8, False, large, 128) == tiles.TILES[1]
    assert tiles.choose(tiles.TILES, 1, 4096, 8, False, large, 128) == tiles.TILES[-1]


# -- edges -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's
@pytest.mark.parametrize("name", [None, "int8", "fp8"])
def test_what_is_no_number_stays_in_its_row(name):
    products = Products(CPU, card=CARD)
    ours, _ = pair(40, 130, FORMS[name], torch.float32)
    x = values(20, 130)
    clean = products.linear(x, ours)
    x[7, 5], x[9, 129] = float("nan"), float("inf")
    found = products.linear(x, ours)
    others = [row for row in range(20) if row not in (7, 9)]
    assert torch.equal(found[others], clean[others])
    assert not found[[7, 9]].isfinite().any()


def test_no_rows_and_rows_that_do_not_lie_together():
    products = Products(CPU, card=CARD)
    ours, meant = pair(40, 130, None, torch.float32, "silu_mul")
    assert products.linear(values(0, 130), ours).shape == (0, 20)
    wide = values(6, 400)
    every = wide[::2, 3:133]
    assert_near(products.linear(every, ours), reference.linear(every, meant), torch.float32)
    turned = values(130, 6).t()
    assert_near(products.linear(turned, ours), reference.linear(turned, meant), torch.float32)


# -- packing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FORMS if name])
@pytest.mark.parametrize("columns", [1, 32, 127, 128, 129, 300])
def test_packing_loses_nothing(name, columns):
    few = quantized(70, columns, FORMS[name])
    packed = pack(few, torch.float32)
    ids = torch.tensor([0, 69, 33, 33])
    assert torch.equal(packed.numbers(ids), few.dequantize()[ids])
    held = [packed.codes, packed.scales, *([] if packed.points is None else [packed.points])]
    assert sum(each.nbytes for each in held) == packed_bytes(few.format, 70, columns)


@pytest.mark.parametrize("name", [None, "int8", "int4", "fp8"])
def test_embeddings(name):
    products = Products(CPU, card=CARD)
    ours, meant = pair(70, 150, FORMS[name], torch.bfloat16)
    ids = torch.tensor([3, 69, 0, 3])
    assert torch.equal(products.embedding(ids, ours), reference.embedding(ids, meant))


def test_every_float_code_is_read_as_torch_reads_it():
    """All but the two that mean no number, which nothing makes."""
    bits = torch.arange(256, dtype=torch.uint8)
    bits[bits & 127 == 127] = 0
    codes = bits.view(torch.float8_e4m3fn)
    weight = QuantizedTensor(FORMATS["fp8"], 1, codes[:, None], torch.ones(256, 1))
    products = Products(CPU, card=CARD)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        packed = products.pack_quantized(weight, None, None, dtype)
        found = products.linear(torch.ones(1, 1, dtype=dtype), packed)
        assert torch.equal(found[0], codes.to(dtype))
