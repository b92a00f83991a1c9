"""Checkpoints in fp8: their codes times their scales, whatever shares one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.kernels.float8 import MOST, TYPE
from rosellm.roseinfer.loading.open import open_checkpoint
from tests.tiny_models import all_logits, build, random_prompts, write_llama, write_safetensors

PROMPT = random_prompts([20], 97)[0]
BLOCK = 24  # not what the sizes of matrices are multiples of


def coded(weight: Tensor, shared: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales, and what they mean."""
    rows, columns = weight.shape
    if shared == "block":
        padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
        padded[:rows, :columns] = weight
        scale = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).abs().amax((1, 3)) / MOST
        wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    elif shared == "row":
        scale = wide = weight.abs().amax(1, keepdim=True) / MOST
    else:
        scale = wide = weight.abs().amax() / MOST
    codes = (weight / wide).clamp(-MOST, MOST).to(TYPE)
    return codes, scale, codes.float() * wide


def write(folder: Path, shared: str) -> tuple[Path, Path]:
    """A Llama in fp8, and the same one in plain numbers."""
    model = write_llama(folder / "model")
    plain = write_llama(folder / "plain")
    weights = load_file(model / "model.safetensors")
    stored, meant = {}, dict(weights)
    for name, weight in weights.items():
        if "_proj.weight" not in name:
            stored[name] = weight
            continue
        ending = "_scale_inv" if shared == "block" else "_scale"
        stored[name], stored[name + ending], meant[name] = coded(weight, shared)
        stored[name.replace("weight", "input_scale")] = torch.ones(())
    config = json.loads((model / "config.json").read_text())
    config |= {"dtype": "float32", "quantization_config": {"quant_method": "fp8"}}
    if shared == "block":
        config["quantization_config"]["weight_block_size"] = [BLOCK, BLOCK]
    (model / "config.json").write_text(json.dumps(config))
    save_file(stored, model / "model.safetensors")
    write_safetensors(plain, meant)
    return model, plain


@pytest.mark.parametrize("shared", ["matrix", "row", "block"])
def test_numbers_are_codes_times_scales(tmp_path, shared):
    model, plain = write(tmp_path, shared)
    assert open_checkpoint(str(model)).dtype == "float32"
    found, wanted = (all_logits(build(folder), PROMPT) for folder in (model, plain))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda scale: None, "has no scale"),
        (lambda scale: scale[:3], r"\[3, 1\] scales for \[\d+, \d+\] codes"),
    ],
)
def test_scales_that_do_not_fit(tmp_path, change, complaint):
    model, _ = write(tmp_path, "row")
    stored = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    changed = change(stored.pop(f"{name}_scale"))
    if changed is not None:
        stored[f"{name}_scale"] = changed.contiguous()
    save_file(stored, model / "model.safetensors")
    with pytest.raises(ModelError, match=rf"^tensor {name}: .*{complaint}"):
        build(model)
