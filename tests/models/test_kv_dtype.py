"""A KV cache in 8 bits: what it costs and saves, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import StepPlan, Work
from tests.models.architectures import BASES, write_model
from tests.models.encoders import BERT, write_bert
from tests.tiny_models import all_logits, build, random_prompts, write_gpt2, write_llama

KINDS = ["gpt2", "gemma2", "gemma3", "qwen3", "gpt_neox"]


def said(core) -> dict[str, str]:
    return {each.name: f"{each.value} ({each.reason})" for each in core.facts.decisions}


def storage_of(core) -> KVStorage:
    assert isinstance(core.runner, ModelRunner)
    return core.runner._storage


def as_served(core, tokens: list[int]) -> Tensor:
    """Scores at every position, by the forward that steps run, in chunks of two blocks."""
    runner = core.runner
    assert isinstance(runner, ModelRunner)
    table = (tuple(range(-(-len(tokens) // 16))),) * len(core.scheduler.cache.pools)
    hidden = [
        runner.hidden_states(StepPlan((Work(0, at, tuple(tokens[at : at + 32]), table),)))
        for at in range(0, len(tokens), 32)
    ]
    with torch.inference_mode():
        return runner.model.logits(torch.cat(hidden)).values.clone()


def relative(found: Tensor, wanted: Tensor) -> float:
    """At the position where it is most."""
    return ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max().item()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("kv"), std=0.1)


def test_start_up_says_it_and_the_fingerprint_knows_it(model):
    plain, small = (build(model, kv_cache_dtype=kind) for kind in ("auto", "int8"))
    assert "KV dtype" not in said(plain)
    assert said(small)["KV dtype"].startswith("int8 (asked for")
    assert plain.facts.fingerprint != small.facts.fingerprint
    assert plain.facts.fingerprint == build(model).facts.fingerprint
    assert small.facts.invariant == plain.facts.invariant


def test_more_tokens_fit_into_the_same_memory(model):
    settings = {"kv_cache_gb": 1 / 1024, "max_model_len": 64, "max_num_seqs": 1 << 20}
    plain, small = (
        build(model, dtype="bfloat16", kv_cache_dtype=kind, **settings) for kind in ("auto", "int8")
    )
    keys, _ = storage_of(small).layer(0)
    dim = keys.data.shape[-1]
    assert (keys.data.dtype, keys.scales.dtype) == (torch.int8, torch.float32)
    gain = small.facts.capacity_tokens / plain.facts.capacity_tokens
    assert gain == pytest.approx(2 * dim / (dim + 4), rel=0.02)
    taken = sum(
        part.nbytes
        for layer in range(2)
        for kept in storage_of(small).layer(layer)
        for part in (kept.data, kept.scales)
    )
    slots, padding = keys.data.shape[0], 16  # the padding's block is never touched here
    assert taken * (slots - padding) <= slots << 20


@pytest.mark.parametrize("kind", KINDS)
def test_scores_hardly_change_and_are_the_references(kind, tmp_path):
    """int8 with a scale for each head of a token: below a hundredth or so, and not nothing."""
    folder = write_gpt2(tmp_path) if kind == "gpt2" else write_model(tmp_path, BASES[kind])
    prompt = random_prompts([60], 97)[0]

    def scores(**settings: str) -> Tensor:
        return as_served(build(folder, dtype="float32", **settings), prompt)

    meant, plain = scores(kernels="reference"), scores(kernels="reference", kv_cache_dtype="int8")
    fast = scores(kv_cache_dtype="int8")
    assert 1e-4 < relative(plain, meant) < 0.05
    assert 0 < relative(fast, meant) < 0.05
    assert relative(fast, plain) < 0.02
    at_once = all_logits(build(folder, dtype="float32", kv_cache_dtype="int8"), prompt)
    assert relative(at_once, fast) < 1e-5  # the same kernels, not as a program


def test_an_encoder_refuses_it(tmp_path):
    folder = write_bert(tmp_path / "bert", BERT)
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8: an encoder keeps no keys"):
        build(folder, kv_cache_dtype="int8")
