"""Codes chosen for a text: less error on inputs like those that were seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rosellm import cli
from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.engine.compare import compare, reference_of
from rosellm.roseinfer.engine.passage import Passage
from rosellm.roseinfer.engine.write import write_folder
from rosellm.roseinfer.quant.feedback import quantize_for
from rosellm.roseinfer.quant.formats import Format
from rosellm.roseinfer.quant.scales import quantize
from rosellm.roseinfer.quant.tensor import QuantizedTensor
from tests.e2e.conftest import write_tokenizer
from tests.models.test_moe import QWEN3, write_moe
from tests.tiny_models import (
    engine_config,
    random_prompts,
    write_gpt2,
    write_llama,
    write_rose_gpt,
)

FORMATS = [Format(8, 32), Format(4, 32), Format(4, 128)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int, columns: int, seed: int) -> Tensor:
    """Inputs whose columns go together, as those of a model do."""
    mixing = gaussian(columns, columns, seed=7) / columns**0.5 + 0.3 * torch.eye(columns)
    return gaussian(count, columns, seed=seed) @ mixing


def moment(x: Tensor) -> Tensor:
    return x.t() @ x / len(x)


def loss(found: QuantizedTensor, weight: Tensor, x: Tensor) -> float:
    return (x @ (found.dequantize() - weight).t()).square().mean().item()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("columns", [31, 96, 172, 300])
def test_other_inputs_of_the_same_kind_lose_less(format, columns):
    weight = gaussian(64, columns)
    found = quantize_for(weight, format, moment(inputs(2000, columns, seed=1)))
    assert found.is_sound()
    assert found.shape == weight.shape
    assert sum(part.nbytes for _, part in found.named_parts()) == found.num_bytes
    unseen = inputs(500, columns, seed=2)
    assert loss(found, weight, unseen) < 0.75 * loss(quantize(weight, format), weight, unseen)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_inputs_that_have_nothing_in_common_leave_nothing_to_gain(format):
    weight, x = gaussian(32, 128), gaussian(1000, 128, seed=1)
    found = quantize_for(weight, format, torch.eye(128))
    for name, part in quantize(weight, format).named_parts():
        assert torch.equal(part, dict(found.named_parts())[name])
    assert loss(found, weight, x) > 0


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_few_inputs_or_none_do_no_harm(seen):
    weight = gaussian(32, 160)
    few = torch.cat([torch.zeros(1, 160), inputs(seen, 160, seed=1)])
    found = quantize_for(weight, Format(4, 128), moment(few))
    assert found.is_sound()
    unseen = inputs(500, 160, seed=2)
    plain = quantize(weight, Format(4, 128))
    assert loss(found, weight, unseen) < 2 * loss(plain, weight, unseen)


slow = pytest.mark.slow

# -- whole models ----------------------------------------------------------------------------

WRITERS = {
    "llama": lambda path: write_llama(path / "model", std=0.1),
    "tied": lambda path: write_llama(path / "model", tie_word_embeddings=True, std=0.1),
    "gpt2": lambda path: write_gpt2(path / "model", std=0.1, dtype=torch.bfloat16),
    "rose": lambda path: write_rose_gpt(path / "model.pt", std=0.1),
    "experts": lambda path: write_moe(path / "model", QWEN3),
}


@pytest.mark.parametrize(
    "kind",
    ["gpt2", "experts", *(pytest.param(kind, marks=slow) for kind in ("llama", "tied", "rose"))],
)
def test_a_model_keeps_closer_to_itself_on_its_text(tmp_path, kind):
    model = WRITERS[kind](tmp_path)
    passage = Passage(random_prompts([1200], 97)[0], bos=None, window=200)
    config = ModelConfig(str(model), quantization="int4", head_quantization="none")
    divergence = {}
    for name, seen in (("plain", None), ("seen", passage)):
        count = write_folder(config, tmp_path / name, passage=seen)
        built = engine_config(tmp_path / name, kernels="reference", dtype="float32")
        reference = reference_of(engine_config(model))
        divergence[name] = compare(built, reference, passage).comparison.kl_mean
    assert count == (tmp_path / "plain" / "model.safetensors").stat().st_size
    assert divergence["seen"] < 0.8 * divergence["plain"]


def test_what_is_not_quantised_stays_as_it_is(tmp_path):
    model = write_llama(tmp_path / "model", dtype=torch.bfloat16)
    passage = Passage(random_prompts([100], 97)[0], bos=None)
    write_folder(ModelConfig(str(model), quantization="int4"), tmp_path / "out", passage=passage)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    original = load_file(model / "model.safetensors")
    for name, tensor in (("norm", "model.norm"), ("embed", "model.embed_tokens")):
        assert torch.equal(stored[f"{name}.weight"], original[f"{tensor}.weight"])


def test_the_command(capsys, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    write_llama(folder, vocab_size=size)
    text = tmp_path / "text"
    text.write_text(Path(__file__).read_text())
    argv = ["quantize", str(folder), str(tmp_path / "out"), "--calibrate"]
    assert cli.main([*argv, str(text), "--max-tokens", "300"]) == 0
    plain = ["quantize", str(folder), str(tmp_path / "plain")]
    assert cli.main(plain) == 0
    capsys.readouterr()
    stored = [load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain")]
    assert not torch.equal(*(each["blocks.0.mlp.down.weight.data"] for each in stored))
    assert cli.main([*argv[:2], str(tmp_path / "again"), "--calibrate", "nowhere"]) == 2
    assert "--calibrate nowhere: No such file" in capsys.readouterr().err.splitlines()[-1]
    text.write_text("")
    assert cli.main([*argv[:2], str(tmp_path / "again"), "--calibrate", str(text)]) == 2
    assert "fewer than two tokens" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "again").exists()
