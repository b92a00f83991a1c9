"""The search for scales: never worse than rounding to nearest, and by how much better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.kernels.cpu.library import Library, Unavailable, load
from rosellm.roseinfer.quant import scales
from rosellm.roseinfer.quant.formats import GROUPS, PART, Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor

FORMATS = [Format(8, 32), Format(8, 64), Format(8, 128), Format(4, 32), Format(4, 128)]
SHAPES = [(1, 1), (3, 5), (7, 33), (2, 128), (5, 129), (4, 172), (9, 300), (300, 96)]


@pytest.fixture(autouse=True, params=["torch", "native"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both that there are."""
    if request.param == "torch":
        monkeypatch.setattr(scales, "load", lambda: Unavailable("not here"))
    elif not isinstance(load(), Library):
        pytest.skip("the native kernels are not built")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(*shape: int, seed: int = 0) -> Tensor:
    """Student's t with 4 degrees of freedom."""
    return gaussian(*shape, seed=seed) / gaussian(4, *shape, seed=seed + 1).square().mean(0).sqrt()


def errors(weight: Tensor, found: QuantizedTensor, importance: Tensor | None = None) -> Tensor:
    """Squared error of each group, in fp64."""
    rows, columns = weight.shape
    squares = (found.dequantize().double() - weight.double()).square()
    if importance is not None:
        squares = squares * importance.double()
    padded = torch.nn.functional.pad(squares, (0, -columns % found.format.group))
    return padded.view(rows, -1, found.format.group).sum(-1)


@pytest.mark.parametrize("draw", [gaussian, heavy_tailed])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_group_is_worse_than_by_rounding_to_nearest(draw, format, shape):
    weight = draw(*shape)
    for importance in (None, gaussian(shape[1], seed=3).square()):
        found = errors(weight, quantize(weight, format, importance), importance)
        nearest = errors(weight, quantize(weight, format, importance, search=False), importance)
        assert (found <= nearest * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize(
    ("draw", "group", "share"),
    [
        (gaussian, 32, 0.78),
        (gaussian, 128, 0.79),
        (heavy_tailed, 32, 0.77),
        (heavy_tailed, 128, 0.79),
    ],
)
def test_in_4_bits_a_fifth_of_the_error_goes(draw, group, share):
    weight, format = draw(256, 512), Format(4, group)
    found = errors(weight, quantize(weight, format)).sum()
    assert found < share * errors(weight, quantize(weight, format, search=False)).sum()


def test_4_bits_come_near_to_what_16_free_levels_of_a_part_allow():
    """A part of 32 with real step and start, as good as Lloyd's rounds make them: 0.0046."""
    weight = gaussian(256, 512)
    assert errors(weight, quantize(weight, Format(4, 128))).sum() / weight.numel() < 0.0053


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_columns_that_share_a_scale_are_more_exact(bits):
    weight = gaussian(128, 512)
    found = [errors(weight, quantize(weight, Format(bits, group))).sum() for group in GROUPS]
    assert found == sorted(found)


def test_importance_moves_error_to_where_it_does_not_count():
    weight = gaussian(64, 256)
    importance = torch.ones(256)
    importance[::4] = 50.0
    plain = errors(weight, quantize(weight, Format(4, 128)), importance).sum()
    assert (
        errors(weight, quantize(weight, Format(4, 128), importance), importance).sum() < 0.8 * plain
    )


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_row_does_not_depend_on_the_others(format):
    weight = heavy_tailed(70, 2048)  # more than one chunk
    whole = quantize(weight, format)
    alone = quantize(weight[63:66], format)
    for name, part in alone.named_parts():
        assert torch.equal(part, dict(whole.named_parts())[name][63:66])


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_layout_and_type_of_weights(format, dtype):
    weight = gaussian(40, 96).to(dtype)
    expected = quantize(weight.float(), format).dequantize()
    assert torch.equal(quantize(weight.t().contiguous().t(), format).dequantize(), expected)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize(
    "value", [0.0, 0.3, -0.3, 1e-9, 6e-5, 3e4, -3e4], ids=lambda value: f"{value:g}"
)
def test_groups_without_a_spread(format, value):
    weight = torch.full((2, 160), value)
    found = quantize(weight, format).dequantize()
    assert (found - weight).abs().max() <= max(abs(value) / 200, 2.0**-24 * 15)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_one_number_alone_does_not_take_the_others_with_it(format):
    weight = gaussian(4, 256) * 0.02
    weight[:, 7] = 3.0
    found = quantize(weight, format).dequantize()
    assert (found[:, 7] - 3.0).abs().max() < 0.15
    other_groups = slice(format.group, None)
    spread = (found - weight)[:, other_groups]
    assert spread.square().mean().sqrt() < 0.02 * 0.12


def test_numbers_far_from_0_keep_their_differences():
    """In 4 bits, a part's offset takes what its numbers have in common."""
    weight = 1.0 + 0.05 * gaussian(16, 128)
    error = (quantize(weight, Format(4, 128)).dequantize() - weight).square().mean().sqrt()
    assert error < 0.05 * 0.12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_what_is_stored_keeps_to_the_form(format, shape):
    rows, columns = shape
    found = quantize(heavy_tailed(rows, columns), format)
    assert found.shape == shape
    assert found.is_sound()
    codes = found.codes()
    assert codes.shape == shape
    assert found.scales.dtype == torch.float16
    assert sum(part.numel() * part.itemsize for _, part in found.named_parts()) == found.num_bytes
    if format.bits == 8:
        assert (codes.dtype, found.steps, found.offsets) == (torch.int8, None, None)
        assert codes.min() >= -127
    else:
        assert codes.dtype == torch.uint8
        assert codes.max() <= 15
        assert found.steps is not None
        assert found.steps.shape == (rows, -(-columns // PART))
