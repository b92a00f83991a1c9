"""Llama and GPT-2 on random weights equal transformers, which reads the same folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.engine.core import EngineCore
from tests.tiny_models import (
    all_logits,
    build,
    generate,
    greedy,
    random_prompts,
    write_gpt2,
    write_llama,
)

LLAMA: dict[str, dict[str, Any]] = {
    "gqa": {},
    "one kv head": {"num_key_value_heads": 1},
    "as many kv heads as heads": {"num_attention_heads": 5, "num_key_value_heads": 5,
                                  "hidden_size": 40, "intermediate_size": 172},
    "four kv heads": {"num_attention_heads": 12, "num_key_value_heads": 4, "hidden_size": 96},
    "head_dim wider than hidden / heads": {"num_attention_heads": 4, "head_dim": 20},
    "odd sizes": {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3,
                  "head_dim": 6, "intermediate_size": 57, "vocab_size": 101,
                  "num_hidden_layers": 3},
    "tied": {"tie_word_embeddings": True},
    "tied, odd vocabulary": {"tie_word_embeddings": True, "vocab_size": 83, "hidden_size": 60},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True, "attention_bias": True},
    "rope_theta": {"rope_theta": 500000.0},
    "rope_parameters": {"rope_theta": None,
                        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}},
    "rms_norm_eps": {"rms_norm_eps": 0.3},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1,
                            "num_key_value_heads": 1, "hidden_size": 8},
    "sharded": {"shards": 3},
}  # fmt: skip

GPT2: dict[str, dict[str, Any]] = {
    "gelu_new": {},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "n_inner": {"n_inner": 172},
    "odd sizes": {"n_embd": 45, "n_head": 3, "n_inner": 57, "vocab_size": 101, "n_layer": 3},
    "many heads": {"n_head": 12},
    "one head": {"n_head": 1, "n_layer": 1},
    "untied": {"tie_word_embeddings": False},
    "layer_norm_epsilon": {"layer_norm_epsilon": 0.3},
    "sharded": {"shards": 2},
}

Write = Callable[..., Path]
CASES = [
    pytest.param(write, config, id=f"{name}: {case}")
    for name, write, configs in [("llama", write_llama, LLAMA), ("gpt2", write_gpt2, GPT2)]
    for case, config in configs.items()
]


class Oracle:
    """The model as transformers runs it: fp32, eager, the whole sequence anew each time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(torch.tensor([list(tokens)])).logits[0]
        return logits

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]


PROMPT_LENGTHS = [1, 37, 5, 60, 16]
NEW = 8


@pytest.mark.parametrize(("write", "config"), CASES)
def test_equals_transformers(write: Write, config: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", **config)
    oracle = Oracle(folder)
    prompts = random_prompts(PROMPT_LENGTHS, config.get("vocab_size", 97))
    wanted = [oracle.greedy(prompt, NEW) for prompt in prompts]

    whole = build(folder)
    long = random_prompts([150], config.get("vocab_size", 97), seed=1)[0]
    for chunk in (None, 64, 7):
        torch.testing.assert_close(
            all_logits(whole, long, chunk), oracle.logits(long), rtol=1e-4, atol=1e-4
        )
    assert_answers(whole, prompts, wanted)
    assert_answers(whole, prompts, wanted, cached=True)
    assert_answers(build(folder, max_num_batched_tokens=7), prompts, wanted)
    preempting = build(folder, num_blocks=66, block_size=2, max_model_len=120)
    assert_answers(preempting, prompts, wanted)
    assert preempting.scheduler.stats().preemptions > 0


def assert_answers(
    core: EngineCore, prompts: list[list[int]], wanted: list[list[int]], cached: bool = False
) -> None:
    results = generate(core, prompts, greedy(NEW))
    assert [result.tokens[0] for result in results] == wanted
    if cached:
        assert [r.cached[0] for r in results] == [(n - 1) // 16 * 16 for n in PROMPT_LENGTHS]


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
