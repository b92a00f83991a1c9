"""The native product: right (against fp64), exact in integers, and a row's bits its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.kernels.cpu.build import LEVELS
from rosellm.roseinfer.kernels.cpu.library import Library
from rosellm.roseinfer.kernels.cpu.matrix import Codes, Finish, Format, Matrix, Shape
from tests.kernels.products import FORMATS, packed, random
from tests.sampling import tops_of

SIZES = [(1, 1), (3, 5), (17, 33), (31, 64), (70, 161), (130, 300), (33, 777), (50, 256)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 31, 64]
PLAIN = [torch.float32, torch.float16, torch.bfloat16]

formats = pytest.mark.parametrize(("format", "group"), FORMATS, ids=lambda each: str(each))


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high + 1, shape, generator=generator)


def every_row(matrix: Matrix) -> Tensor:
    """The weight that is meant, in fp64."""
    return matrix.lookup(torch.arange(matrix.shape.n)).double()


def quantised(x: Tensor, group: int) -> Tensor:
    """Rows as an int8 product sees them: each group rounded to 127 steps of its largest number."""
    count, k = x.shape
    padded = torch.nn.functional.pad(x, (0, -k % group)).view(count, -1, group)
    largest = padded.abs().amax(-1, keepdim=True)
    codes = (padded * (127.0 / largest).nan_to_num(posinf=0.0)).round().double()
    return (codes * (largest / 127.0).double()).view(count, -1)[:, :k]


def wanted(matrix: Matrix, x: Tensor, level: str) -> Tensor:
    """The product in fp64, of x as the level's kernels see it."""
    shape = matrix.shape
    if shape.format in ("int8", "int4"):
        seen = quantised(x, shape.group)
    elif shape.format == "bf16" and level in ("avx512_bf16", "amx"):
        seen = x.bfloat16().double()
    else:
        seen = x.double()
    product = seen @ every_row(matrix).T
    return product if matrix.bias is None else product + matrix.bias.double()


def assert_near(found: Tensor, exact: Tensor) -> None:
    scale = max(1.0, exact.abs().max().item())
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-6 * scale)


# -- against fp64 -----------------------------------------------------------------


@formats
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product(
    library: Library, level: str, size: tuple[int, int], format: Format, group: int
) -> None:
    matrix = packed(library, *size, format, group)
    x = random(max(ROWS), size[1], seed=2)
    exact = wanted(matrix, x, level)
    for count in ROWS:
        assert_near(matrix.linear(x[:count]), exact[:count])


@formats
@pytest.mark.parametrize("k", [161, 192])
def test_any_number_of_rows_up_to_300(
    library: Library, level: str, k: int, format: Format, group: int
) -> None:
    """Right, and each row with the same bits whatever their number."""
    matrix = packed(library, 37, k, format, group)
    x = random(300, k, seed=2)
    whole = matrix.linear(x)
    assert_near(whole, wanted(matrix, x, level))
    for count in range(1, 300):
        assert torch.equal(matrix.linear(x[:count]), whole[:count]), count


@formats
def test_hundreds_of_rows(library: Library, level: str, format: Format, group: int) -> None:
    matrix = packed(library, 70, 161, format, group)
    for count in (100, 300, 505):
        x = random(count, 161)
        assert_near(matrix.linear(x), wanted(matrix, x, level))


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_lossless_formats_keep_every_bit(library: Library, level: str, dtype: torch.dtype) -> None:
    kinds: dict[torch.dtype, Format] = dict(zip(PLAIN, ("fp32", "fp16", "bf16"), strict=True))
    weight = random(45, 131).to(dtype)
    weight[3, 7], weight[4, 8], weight[5, 9] = 0.0, -1e-6, torch.finfo(dtype).max
    matrix = Matrix.of(library, Shape(kinds[dtype], 45, 131), weight)
    assert torch.equal(matrix.lookup(torch.arange(45)), weight.float())
    assert torch.equal(matrix.lookup(torch.tensor([44, 0, 44])), weight[[44, 0, 44]].float())


@pytest.mark.parametrize(
    ("format", "group", "most"), [("int8", 32, 0.006), ("int8", 256, 0.0075), ("int4", 128, 0.085)]
)
def test_rounding_to_nearest(
    library: Library, level: str, format: Format, group: int, most: float
) -> None:
    """The error's size is that of so many steps; a wrong scale or part would make it far larger."""
    weight = random(50, 333)
    weight[:, 100:140] *= 0.05
    weight[7] = 0.0
    found = every_row(Matrix.of(library, Shape(format, 50, 333, group), weight))
    assert ((found - weight).norm() / weight.norm()).item() < most
    assert torch.equal(found[7], torch.zeros(333).double())


def test_every_level_packs_the_same_bytes(library: Library) -> None:
    before = library.level
    for format, group in FORMATS:
        kept = []
        for name in LEVELS:
            if library.set_level(name):
                kept.append(packed(library, 50, 333, format, group).data)
        library.set_level(before)
        assert all(torch.equal(kept[0], other) for other in kept[1:]), format


# -- exact integers ---------------------------------------------------------------


def coded(library: Library, n: int, k: int, format: Format, group: int, kind: str) -> Matrix:
    """A weight of whole numbers: every scale is 1."""
    groups, parts = -(-k // group), -(-k // 32)
    scales = torch.ones(n, groups)
    if format == "int8":
        low, high = {"low": (-127, -127), "high": (127, 127), "any": (-127, 127)}[kind]
        codes = Codes(integers(low, high, n, k).to(torch.int8), scales)
    else:
        low, high = {"low": (0, 0), "high": (15, 15), "any": (0, 15)}[kind]
        steps = integers(0, 15, n, parts) if kind == "any" else torch.full((n, parts), 15)
        offsets = {"low": 0 * steps, "high": 255 - 15 * steps, "any": 255 - 15 * steps}[kind]
        if kind == "any":
            offsets = (offsets * torch.rand(n, parts)).long()
        numbers = (integers(low, high, n, k), steps, offsets)
        levels, steps, offsets = (each.to(torch.uint8) for each in numbers)
        codes = Codes(levels, scales, steps, offsets)
    matrix = Matrix.empty(library, Shape(format, n, k, group))
    matrix.pack_codes(codes)
    return matrix


def meant(matrix: Matrix) -> Tensor:
    """The whole numbers of a weight."""
    found = every_row(matrix)
    assert torch.equal(found, found.round())
    return found.long()


def whole_rows(count: int, k: int, group: int, kind: str) -> Tensor:
    """Rows of whole numbers that quantisation does not change: each group has a 127."""
    low, high = {"low": (-127, -127), "high": (127, 127), "any": (-127, 127)}[kind]
    x = integers(low, high, count, k, seed=5)
    if kind == "any":
        x[:, ::group] = 127
    return x


@pytest.mark.parametrize("size", [(5, 3), (40, 128), (33, 200), (17, 1000)], ids=str)
@pytest.mark.parametrize("rows_are", ["low", "high", "any"])
@pytest.mark.parametrize("weights_are", ["low", "high", "any"])
@pytest.mark.parametrize(("format", "group"), FORMATS[3:], ids=lambda each: str(each))
def test_integers_are_exact(
    library: Library,
    level: str,
    size: tuple[int, int],
    rows_are: str,
    weights_are: str,
    format: Format,
    group: int,
) -> None:
    """Nothing saturates, at the greatest sums of products least of all."""
    matrix = coded(library, *size, format, group, weights_are)
    x = whole_rows(14, size[1], group, rows_are)
    exact = x @ meant(matrix).T
    for count in (1, 2, 4, 14):
        # sums are below 2^24, so fp32 holds them
        assert torch.equal(matrix.linear(x[:count].float()).long(), exact[:count])


@pytest.mark.parametrize(("format", "group"), FORMATS[3:], ids=lambda each: str(each))
def test_codes_are_kept(library: Library, format: Format, group: int) -> None:
    n, k = 37, 203
    groups, parts = -(-k // group), -(-k // 32)
    scales = (random(n, groups).abs() + 0.01).half().float()
    spread = scales.repeat_interleave(group, 1)[:, :k]
    matrix = Matrix.empty(library, Shape(format, n, k, group))
    if format == "int8":
        codes = integers(-127, 127, n, k)
        matrix.pack_codes(Codes(codes.to(torch.int8), scales))
        points = codes
    else:
        codes, steps = integers(0, 15, n, k), integers(0, 15, n, parts, seed=1)
        offsets = ((255 - 15 * steps) * torch.rand(n, parts)).long()
        numbers = [each.to(torch.uint8) for each in (codes, steps, offsets)]
        matrix.pack_codes(Codes(numbers[0], scales, *numbers[1:]))
        wide = [each.repeat_interleave(32, 1)[:, :k] for each in (steps, offsets)]
        points = wide[0] * codes + wide[1] - 128
    assert torch.equal(every_row(matrix), (spread * points).double())


# -- a row's bits are its own -----------------------------------------------------


@formats
@pytest.mark.parametrize("gated", [False, True])
def test_rows_alone_and_in_batches(
    library: Library, level: str, threads: int, format: Format, group: int, gated: bool
) -> None:
    n, k, count = 102, 175, 128
    matrix = packed(library, n, k, format, group, gated=gated)
    finish: Finish = "silu_mul" if gated else "store"
    wide = random(count, k + 9, seed=3)
    x = wide[:, 4 : 4 + k]
    together = matrix.linear(x, finish)
    for row in range(0, count, 5):
        assert torch.equal(matrix.linear(x[row : row + 1], finish)[0], together[row])
    for size in (*range(2, 26), 31, 37, 64, 127):
        first = size * 7 % (count - size + 1)
        part = slice(first, first + size)
        out = torch.empty(size, matrix.columns + 5)[:, : matrix.columns]
        assert torch.equal(matrix.linear(x[part], finish, out), together[part])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    assert torch.equal(matrix.linear(x, finish, index=order), together[order])


def test_threads_change_nothing(library: Library, level: str) -> None:
    before = library.threads
    for format, group in FORMATS:
        found = []
        for count in (1, 2, 4):
            library.set_threads(count)
            matrix = packed(library, 333, 290, format, group)
            found.append(torch.cat([matrix.linear(random(rows, 290)) for rows in (1, 9, 70)]))
        library.set_threads(before)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@formats
def test_a_row_that_is_not_finite_spoils_itself_alone(
    library: Library, level: str, format: Format, group: int
) -> None:
    matrix = packed(library, 40, 150, format, group)
    x = random(6, 150)
    sound = matrix.linear(x)
    x[2, 149], x[4, 3] = float("nan"), float("inf")
    found = matrix.linear(x)
    others = [0, 1, 3, 5]
    assert torch.equal(found[others], sound[others])
    assert found[2].isnan().all()
    assert not found[4].isfinite().any()


# -- what is done to results ------------------------------------------------------

PLAIN_FINISHES: list[tuple[Finish, Callable[[Tensor], Tensor]]] = [
    ("store", lambda y: y),
    ("gelu_tanh", reference.gelu_tanh),
    ("gelu_erf", reference.gelu_erf),
]
GATED_FINISHES: list[tuple[Finish, Callable[[Tensor], Tensor]]] = [
    ("silu_mul", reference.silu_mul),
    ("gelu_tanh_mul", reference.gelu_tanh_mul),
]


@pytest.mark.parametrize(("finish", "function"), PLAIN_FINISHES, ids=lambda each: str(each)[:9])
@pytest.mark.parametrize("biased", [True, False])
def test_finishes(
    library: Library,
    level: str,
    finish: Finish,
    function: Callable[[Tensor], Tensor],
    biased: bool,
) -> None:
    weight, bias = random(45, 60), random(45) if biased else None
    matrix = Matrix.of(library, Shape("fp32", 45, 60), weight, bias)
    x = random(9, 60)
    product = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    assert_near(matrix.linear(x, finish), function(product.float()).double())


@pytest.mark.parametrize(("finish", "function"), GATED_FINISHES, ids=lambda each: str(each)[:9])
@pytest.mark.parametrize("half", [1, 16, 21, 50])
@pytest.mark.parametrize("biased", [True, False])
def test_gated_finishes(
    library: Library,
    level: str,
    finish: Finish,
    function: Callable[[Tensor], Tensor],
    half: int,
    biased: bool,
) -> None:
    weight, bias = random(2 * half, 60), random(2 * half) if biased else None
    matrix = Matrix.of(library, Shape("fp32", 2 * half, 60, gated=True), weight, bias)
    for count in (1, 5, 40):
        x = random(count, 60)
        product = x.double() @ weight.double().T + (0.0 if bias is None else bias.double())
        assert_near(matrix.linear(x, finish), function(product.float()).double())
    assert torch.equal(matrix.lookup(torch.arange(2 * half)), weight)


@formats
def test_adding_to_a_residual(library: Library, level: str, format: Format, group: int) -> None:
    matrix = packed(library, 43, 100, format, group)
    x, residual = random(20, 100), random(20, 43)
    assert torch.equal(matrix.linear(x, "add", residual.clone()), residual + matrix.linear(x))


@formats
@pytest.mark.parametrize("gated", [False, True])
def test_nothing_else_is_written(
    library: Library, level: str, format: Format, group: int, gated: bool
) -> None:
    matrix = packed(library, 42, 70, format, group, gated=gated)
    for count in (1, 6, 30):
        around = torch.full((count + 2, matrix.columns + 7), 7.0)
        inside = around[1:-1, 3 : 3 + matrix.columns]
        matrix.linear(random(count, 70), "silu_mul" if gated else "store", inside)
        assert not (inside == 7.0).any()
        inside.fill_(7.0)
        assert (around == 7.0).all()


@formats
@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 65, 97, 130, 1000])
def test_tops_are_of_what_is_written(
    library: Library, level: str, format: Format, group: int, n: int
) -> None:
    matrix = packed(library, n, 70, format, group)
    for count in (1, 3, 6, 30, 70):
        x = random(count, 70)
        found = matrix.logits(x)
        assert torch.equal(found.values, matrix.linear(x))
        assert torch.equal(found.tops, tops_of(found.values))
        assert found.finite.all()


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("place", [0, 40, 96])
def test_the_top_of_what_is_no_number_is_none(
    library: Library, level: str, number: float, place: int
) -> None:
    bias = torch.zeros(97)
    bias[place] = number
    matrix = Matrix.of(library, Shape("int8", 97, 40, 32), random(97, 40), bias)
    tops = matrix.logits(random(2, 40)).tops
    assert torch.equal(tops.isnan(), tops_of(bias.expand(2, -1)).isnan())


@formats
def test_no_rows(library: Library, format: Format, group: int) -> None:
    matrix = packed(library, 20, 40, format, group)
    assert (
        matrix.linear(random(0, 40)).shape == matrix.logits(random(0, 40)).values.shape == (0, 20)
    )
    assert matrix.lookup(torch.empty(0, dtype=torch.int64)).shape == (0, 40)


# -- packing ----------------------------------------------------------------------


@formats
@pytest.mark.parametrize("gated", [False, True])
def test_packing_in_parts(library: Library, format: Format, group: int, gated: bool) -> None:
    """Tensor by tensor, wherever one ends, from a part of a wider one."""
    weight = random(100, 170)[:, 3:150]
    shape = Shape(format, 100, 147, group, gated)
    parts = Matrix.empty(library, shape)
    for first, last in ((0, 5), (60, 100), (5, 37), (37, 60)):
        parts.pack(weight[first:last], first)
    assert torch.equal(parts.data, Matrix.of(library, shape, weight).data)


def test_codes_in_parts(library: Library) -> None:
    whole = coded(library, 50, 200, "int4", 128, "any")
    torch.manual_seed(0)
    rows = [integers(0, 15, 50, 200), integers(0, 8, 50, 7), integers(0, 120, 50, 7, seed=1)]
    codes, steps, offsets = (each.to(torch.uint8) for each in rows)
    scales = random(50, 2).abs().half().float()
    whole.data.zero_()
    whole.pack_codes(Codes(codes, scales, steps, offsets))
    parts = Matrix.empty(library, whole.shape)
    for at in (slice(30, 50), slice(0, 7), slice(7, 30)):
        parts.pack_codes(Codes(codes[at], scales[at], steps[at], offsets[at]), at.start)
    assert torch.equal(whole.data, parts.data)


@pytest.mark.parametrize(
    "shape",
    [
        Shape("int8", 4, 4),
        Shape("int8", 4, 4, 48),
        Shape("int8", 4, 4, 512),
        Shape("int4", 4, 4, 96),
        Shape("fp32", 0, 4),
        Shape("bf16", 3, 4, gated=True),
    ],
    ids=str,
)
def test_weights_that_cannot_be(library: Library, shape: Shape) -> None:
    with pytest.raises(ValueError, match="no weight can be packed"):
        Matrix.empty(library, shape)


def test_bits_a_weight(library: Library) -> None:
    """What decoding reads: the less, the faster."""
    for format, group, bits in (("int4", 128, 4.5), ("int8", 128, 8.125), ("int8", 32, 8.5)):
        shape = Shape(format, 1024, 1024, group)
        assert shape.num_bytes(library) * 8 / (1024 * 1024) == bits
