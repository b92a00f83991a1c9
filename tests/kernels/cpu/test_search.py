"""The native search for scales: as good as the one in torch, and a row's result is its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Unavailable
from rosellm.roseinfer.quant import scales
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.native import search4
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor

FORMATS = [Format(4, 32), Format(4, 128), Format(4, 256)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(weight: Tensor, found: QuantizedTensor, importance: Tensor | None) -> float:
    squares = (found.dequantize() - weight).square()
    return (squares if importance is None else squares * importance).sum().item()


def equal(one: QuantizedTensor, other: QuantizedTensor) -> bool:
    pairs = zip(one.named_parts(), other.named_parts(), strict=True)
    return all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("columns", [33, 128, 172, 300])
def test_as_good_as_in_torch(level, library, monkeypatch, format, columns):
    """Candidates that are as good as equal may be told apart otherwise, so only on the whole."""
    weight = random(300, columns)
    monkeypatch.setattr(scales, "load", lambda: Unavailable("not here"))
    for importance in (None, random(columns, seed=1).square()):
        expected = error(weight, quantize(weight, format, importance), importance)
        found = search4(library, weight, format, importance)
        assert found.is_sound()
        assert error(weight, found, importance) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("columns", [1, 31, 129, 260])
def test_a_row_has_its_own_bits(level, library, columns):
    weight, format = random(35, columns), Format(4, 128)
    whole = search4(library, weight, format, None)
    for rows in (slice(0, 1), slice(17, 18), slice(3, 20), slice(34, 35)):
        assert equal(search4(library, weight[rows], format, None), whole.rows(rows))
    before = library.threads
    for threads in (1, 2, 4):
        library.set_threads(threads)
        assert equal(search4(library, weight, format, None), whole)
    library.set_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types_and_layouts(level, library, dtype):
    weight, format = random(20, 70).to(dtype), Format(4, 32)
    expected = search4(library, weight.float(), format, None)
    assert equal(search4(library, weight, format, None), expected)
    assert equal(search4(library, weight.t().contiguous().t(), format, None), expected)
    apart = torch.empty(20, 100, dtype=dtype)
    apart[:, :70] = weight
    assert equal(search4(library, apart[:, :70], format, None), expected)


def test_extremes(level, library):
    format = Format(4, 128)
    rows = [torch.zeros(128), torch.full((128,), 6e4), torch.full((128,), -1e-9), random(128)]
    rows += [random(128) * 1e-7, torch.cat([torch.full((127,), 1e-6), torch.tensor([100.0])])]
    weight = torch.stack(rows)
    found = search4(library, weight, format, None)
    assert found.is_sound()
    numbers = found.dequantize()
    assert torch.equal(numbers[0], weight[0])
    assert (numbers[1] - weight[1]).abs().max() < 300
    assert (numbers[2]).abs().max() < 1e-6
    assert (numbers[5, 127] - 100).abs() < 1
    assert numbers.isfinite().all()
