"""Weights and caches in e4m3: what they mean, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.engine.passage import Passage
from rosellm.roseinfer.engine.write import write_folder
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels import float8, reference
from rosellm.roseinfer.kernels.cpu.library import Library, load
from rosellm.roseinfer.quant.formats import FORMATS, Format, Recipe
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor, pieces
from tests.tiny_models import all_logits, build, random_prompts, write_llama, write_safetensors

FP8 = FORMATS["fp8"]
PROMPT = random_prompts([40], 97)[0]


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def logits(model: Path, **settings: Any) -> Tensor:
    return all_logits(build(model, kernels="reference", **settings), PROMPT)


# -- what codes mean -------------------------------------------------------------------------


def test_codes_are_torchs_casts_of_what_is_scaled():
    x = values(9, 50)
    codes, scales = float8.rows_to_codes(x)
    assert torch.equal(scales, x.abs().amax(1) / 448)
    assert torch.equal(codes.float(), (x * (1 / scales)[:, None]).to(float8.TYPE).float())
    assert (codes.float().abs().amax(1) == 448).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_keeps_three_bits_of_its_mantissa(dtype):
    x = values(9, 50).to(dtype)
    found = quantize(x, FP8).dequantize()
    least = x.float().abs().amax(1, keepdim=True) * 2.0**-6 / 448  # below it codes are subnormal
    error = (found - x.float()).abs()
    assert (error <= (x.float().abs() / 16).maximum(least)).all()


def test_rows_without_a_scale():
    x = values(6, 8)
    x[0], x[1], x[2, 3], x[3, 3], x[4] = 0, 1e-42, float("nan"), float("-inf"), 3e38
    codes, scales = float8.rows_to_codes(x)
    numbers = codes.float() * scales[:, None]
    assert (numbers[:2] == 0).all()
    assert numbers[2:4].isnan().all()
    assert torch.allclose(numbers[4], x[4])
    assert not (codes.view(torch.uint8) & 127 == 127).any()


def test_the_format():
    assert (FP8.name, FP8.label) == ("fp8 with a scale for each row", "fp8")
    found = quantize(values(5, 33), FP8)
    parts = {name: (tuple(part.shape), part.dtype) for name, part in found.named_parts()}
    assert parts == pieces(FP8, 5, 33)
    assert sum(part.nbytes for _, part in found.named_parts()) == FP8.num_bytes(5, 33)
    assert Recipe(FP8, FP8).of("blocks.0.mlp.up") == FP8
    with pytest.raises(ValueError, match="floats have 8 bits"):
        Format(4, 32, "float")


def test_damage_is_seen():
    found = quantize(values(5, 33), FP8)
    assert found.is_sound()
    found.data.view(torch.uint8)[2, 3] = 255
    assert not found.is_sound()
    scales = torch.full((1, 1), float("inf"))
    assert not QuantizedTensor(FP8, 1, torch.zeros(1, 1).to(float8.TYPE), scales).is_sound()


# -- a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama(tmp_path, tied, cache):
    """From the checkpoint, from what the first start kept, and from a written folder."""
    model = write_llama(tmp_path / "model", tie_word_embeddings=tied)
    found = logits(model, quantization="fp8")
    assert torch.equal(logits(model, quantization="fp8"), found)
    (entry,) = cache.iterdir()
    assert entry.name.startswith("model-fp8-")
    write_folder(ModelConfig(str(model), quantization="fp8"), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), found)
    weights = load_file(model / "model.safetensors")
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    for name, weight in weights.items():
        if "_proj.weight" in name or name == head:
            weights[name] = quantize(weight, FP8).dequantize()
    plain = logits(model)
    write_safetensors(model, weights)
    assert torch.equal(logits(model), found)
    assert 0 < (found - plain).norm() / plain.norm() < 0.2


def test_keys_and_values(tmp_path):
    model = write_llama(tmp_path / "model", std=0.1)
    plain, found = logits(model), logits(model, kv_cache_dtype="fp8")
    assert 1e-4 < (found - plain).norm() / plain.norm() < 0.1
    core = build(model, kernels="reference", kv_cache_dtype="fp8")
    assert core.facts.invariant
    assert any(each.value == "fp8" for each in core.facts.decisions)


def test_a_cache_gives_back_what_was_written():
    from rosellm.roseinfer.cache.storage import KVGroup, KVStorage

    group = KVGroup((0,), 3, 8)
    storage = KVStorage([group], [4], 4, float8.TYPE, torch.device("cpu"))
    keys, _ = storage.layer(0)
    x = values(5, 3, 8)
    reference.write_kv(keys, torch.tensor([0, 9, 3, 4, 15]), x)
    assert group.bytes_per_token(float8.TYPE) == 2 * 3 * (8 + 4)
    read = reference.read_kv(keys, torch.arange(9 * 3, 10 * 3))
    codes, scales = float8.rows_to_codes(x[1])
    assert torch.equal(read, codes.float() * scales[:, None])


# -- where there is none ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "settings"),
    [
        ("--quantization", {"quantization": "fp8"}),
        ("--head-quantization", {"head_quantization": "fp8"}),
        ("--kv-cache-dtype", {"kv_cache_dtype": "fp8"}),
    ],
)
def test_native_kernels_refuse_it(tmp_path, flag, settings):
    if not isinstance(load(), Library):
        pytest.skip("no native kernels here")
    model = write_llama(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"^{flag} fp8: the CPU's native kernels have none"):
        build(model, **settings)


def test_no_text_helps(tmp_path):
    model = write_llama(tmp_path / "model")
    with pytest.raises(ConfigError, match="--calibrate"):
        write_folder(
            ModelConfig(str(model), quantization="fp8"),
            tmp_path / "out",
            passage=Passage([1, 2], None),
        )
