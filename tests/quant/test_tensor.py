"""What the bits of a quantised matrix mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rosellm.roseinfer.quant.formats import Format, Recipe, parts_of
from rosellm.roseinfer.quant.tensor import QuantizedTensor, pack_pairs, pieces


def tensor(bits: int, group: int, rows: int, columns: int) -> QuantizedTensor:
    """Random codes and parameters."""
    make = torch.Generator().manual_seed(columns)
    format = Format(bits, group)
    scales = torch.rand(rows, format.groups(columns), generator=make).half()
    if bits == 8:
        codes = torch.randint(-127, 128, (rows, columns), generator=make).to(torch.int8)
        return QuantizedTensor(format, columns, codes, scales)
    codes = torch.randint(16, (rows, columns), generator=make)
    steps, offsets = (
        torch.randint(last + 1, (rows, parts_of(columns)), generator=make).to(torch.uint8)
        for last in (15, 30)
    )
    return QuantizedTensor(format, columns, pack_pairs(codes), scales, steps, offsets)


def meant(found: QuantizedTensor, row: int, column: int) -> float:
    """One number, from the definition."""
    scale = found.scales[row, column // found.format.group].item()
    code = found.codes()[row, column].item()
    if found.steps is None or found.offsets is None:
        return scale * code
    part = column // 32
    step, offset = found.steps[row, part].item(), found.offsets[row, part].item()
    return scale * (step * code + offset - 128)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 127, 128, 129, 172, 300])
def test_dequantize(bits, columns):
    found = tensor(bits, 128, 3, columns)
    expected = [[meant(found, row, column) for column in range(columns)] for row in range(3)]
    torch.testing.assert_close(found.dequantize(), torch.tensor(expected), rtol=1e-6, atol=0)
    assert found.dequantize(torch.bfloat16).equal(found.dequantize().bfloat16())


def test_two_codes_share_a_byte_the_even_one_in_the_low_half():
    packed = pack_pairs(torch.tensor([[1, 2, 15], [4, 0, 7]]))
    assert packed.tolist() == [[0x21, 0x0F], [0x04, 0x07]]


def test_many_rows_are_reckoned_like_few():
    found = tensor(4, 128, 1500, 40)
    assert torch.equal(found.dequantize()[700:703], found.rows(slice(700, 703)).dequantize())


@pytest.mark.parametrize("bits", [4, 8])
def test_pieces_say_what_there_is(bits):
    found = tensor(bits, 64, 5, 129)
    assert {name: (tuple(part.shape), part.dtype) for name, part in found.named_parts()} == pieces(
        found.format, 5, 129
    )


def test_damage_is_seen():
    found = tensor(4, 128, 2, 64)
    assert found.is_sound()
    assert found.steps is not None
    assert not replace(found, scales=torch.full_like(found.scales, float("nan"))).is_sound()
    assert not replace(found, steps=torch.full_like(found.steps, 16)).is_sound()
    assert not replace(found, offsets=torch.full_like(found.steps, 255)).is_sound()


@pytest.mark.parametrize("group", [-32, 0, 31, 33, 512])
def test_groups_that_are_none(group):
    with pytest.raises(ValueError, match="one of 32, 64, 128, 256"):
        Format(4, group)


@pytest.mark.parametrize(
    ("module", "which"),
    [
        ("blocks.0.attention.qkv", "layers"),
        ("blocks.11.mlp.experts.3.down", "layers"),
        ("blocks.11.mlp.router", None),
        ("head", "head"),
        ("embed", "head"),
        ("position", None),
        ("token_type", None),
    ],
)
def test_what_is_quantised(module, which):
    recipe = Recipe(layers=Format(4, 128), head=Format(8, 32))
    assert recipe.of(module) == (None if which is None else getattr(recipe, which))
    assert Recipe().of(module) is None
