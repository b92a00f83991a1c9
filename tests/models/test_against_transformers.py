"""Every architecture on random weights equals transformers, which reads the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rosellm.roseinfer.models.registry import find_architecture
from tests.models.architectures import AS_SAVED, BASES, CASES, Case, write_model
from tests.models.oracle import Oracle, assert_equals_transformers
from tests.tiny_models import (
    all_logits,
    build,
    generate,
    greedy,
    random_prompts,
    read_spec,
    write_gpt2,
    write_llama,
)

LLAMA: dict[str, dict[str, Any]] = {
    "gqa": {},
    "odd sizes": {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3,
                  "head_dim": 6, "intermediate_size": 57, "vocab_size": 101,
                  "num_hidden_layers": 3},
    "mlp_bias": {"mlp_bias": True, "attention_bias": True},
    "rope_parameters": {"rope_theta": None,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
}  # fmt: skip

LLAMA_SLOW: dict[str, dict[str, Any]] = {
    "tied, odd vocabulary": {"tie_word_embeddings": True, "vocab_size": 83, "hidden_size": 60},
    "sharded": {"shards": 3},
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_attention_heads": 5, "num_key_value_heads": 5,
                                  "hidden_size": 40, "intermediate_size": 172},
    "four kv heads": {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 96},
    "head_dim wider than hidden / heads": {"num_attention_heads": 4, "head_dim": 20},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "rope_theta": {"rope_theta": 500000.0},
    "rms_norm_eps": {"rms_norm_eps": 0.3},
    "gated gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1,
                            "num_key_value_heads": 1, "hidden_size": 8},
}  # fmt: skip

GPT2: dict[str, dict[str, Any]] = {
    "gelu_new": {},
    "gelu": {"activation_function": "gelu"},
    "odd sizes": {"n_embd": 45, "n_head": 3, "n_inner": 57, "vocab_size": 101, "n_layer": 3},
}

GPT2_SLOW: dict[str, dict[str, Any]] = {
    "untied": {"tie_word_embeddings": False},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "n_inner": {"n_inner": 172},
    "many heads": {"n_head": 12},
    "one head": {"n_head": 1, "n_layer": 1},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0.3},
    "sharded": {"shards": 2},
}

slow = pytest.mark.slow
Write = Callable[..., Path]
WRITTEN_BY_US = [
    pytest.param(write, config, id=f"{name}: {case}", marks=marks)
    for name, write, configs, marks in [
        ("llama", write_llama, LLAMA, ()),
        ("llama", write_llama, LLAMA_SLOW, slow),
        ("gpt2", write_gpt2, GPT2, ()),
        ("gpt2", write_gpt2, GPT2_SLOW, slow),
    ]
    for case, config in configs.items()
]
WRITTEN_BY_TRANSFORMERS = [
    pytest.param(case, id=name, marks=slow if case.slow else ()) for name, case in CASES.items()
]


@pytest.mark.parametrize(("write", "config"), WRITTEN_BY_US)
def test_weights_of_ours(write: Write, config: dict[str, Any], tmp_path: Path) -> None:
    assert_equals_transformers(write(tmp_path / "model", **config))


@pytest.mark.parametrize("case", WRITTEN_BY_TRANSFORMERS)
def test_weights_of_theirs(case: Case, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", case.config)
    assert_equals_transformers(
        folder,
        max_model_len=case.max_model_len,
        lengths=case.lengths,
        long=case.long,
        first=case.first,
    )
    # The same config in the spelling of today's transformers means the same.
    architecture = find_architecture(case.config["architectures"][0])
    saved = json.loads((folder / AS_SAVED).read_text())
    assert architecture.read_config(saved) == read_spec(folder)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_either_naming_of_gemma3_with_images(prefix: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", BASES["gemma3 with images"])
    text = random_prompts([40], 97)[0]
    wanted = all_logits(build(folder), text)
    weights = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", prefix): tensor for name, tensor in weights.items()
    }
    assert any(name.startswith(prefix) for name in renamed)
    save_file(renamed, folder / "model.safetensors")
    assert torch.equal(all_logits(build(folder), text), wanted)


def test_scaled_embeddings_are_rounded_like_theirs(tmp_path: Path) -> None:
    """The root of 48 is not a bfloat16: the scale itself is rounded, then the products, if not
    by the native kernels, whose activations are wider."""
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "model", BASES["gemma2"], dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.arange(97)
    with torch.inference_mode():
        wanted = theirs.get_input_embeddings()(ids)
        for kernels in ("reference", "auto"):
            model = build(folder, kernels=kernels)._runner._model  # type: ignore[attr-defined]
            assert torch.equal(model.embed(ids).bfloat16(), wanted)


def test_logprobs_are_those_of_transformers(tmp_path: Path) -> None:
    """Every token's, at every generated position."""
    folder = write_llama(tmp_path / "model")
    prompt = random_prompts([20], 97)[0]
    result = generate(build(folder), [prompt], greedy(8, logprobs=97))[0]
    tokens = [*prompt, *result.tokens[0]]
    wanted = Oracle(folder).logits(tokens).log_softmax(-1)
    for position, found in enumerate(result.logprobs[0], start=len(prompt) - 1):
        values = torch.tensor(found.top)[torch.argsort(torch.tensor(found.top_ids))]
        torch.testing.assert_close(values, wanted[position], rtol=1e-4, atol=1e-4)
        assert found.chosen == pytest.approx(
            wanted[position, tokens[position + 1]].item(), abs=1e-4
        )
