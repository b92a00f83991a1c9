"""``rosellm bench offline``, the random models, and the sections of ``benchmarks.core``."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import long_prompt, overhead, throughput
from benchmarks.random_model import GPT2_SMALL, TINY_LONG, tokenizer, write_model
from rosellm.bench import ceilings
from rosellm.bench.cost import Cost, model_cost
from rosellm.cli import main
from rosellm.roseinfer.config import ModelConfig
from rosellm.roseinfer.quant.formats import FORMATS
from rosellm.roseinfer.text.load import load_tokenizer
from tests.tiny_models import build

GPT2 = {**GPT2_SMALL, "vocab_size": 600, "n_embd": 32, "n_layer": 2, "n_head": 2}
LLAMA = {**TINY_LONG, "max_position_embeddings": 8192}


@pytest.fixture
def quick_ceilings(monkeypatch):
    """Skip the seconds that measuring the machine takes."""
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(ceilings, "MATMUL_SIZE", {"cpu": 64})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(GPT2, tmp_path_factory.mktemp("models") / "tiny-gpt2")


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_random_model_is_served_and_always_the_same(config, tmp_path):
    first, second = (write_model(config, tmp_path / name, seed=3) for name in "ab")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert build(first, kv_cache_gb=0.01).facts.vocab_size == config["vocab_size"]


def test_every_id_of_a_random_models_tokenizer_has_text(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer(20001)))
    made = load_tokenizer(str(tmp_path))
    assert made.vocab_size == 20001
    assert all(made.token_bytes(id) for id in range(0, 20001, 97))
    text = "Once upon a time, für 3 roses. 🌹"
    assert made.decode(made.encode(text)) == text
    assert made.token_bytes(19000).isascii()


def test_offline_reports_in_its_last_line(model, quick_ceilings, capfd):
    flags = "--device cpu --num-requests 6 --input-tokens 8:12 --output-tokens 5 --max-num-seqs 3"
    code = main(["bench", "offline", str(model), *flags.split()])
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert code == 0
    assert (found["benchmark"], found["model"], found["device"]) == ("offline", "tiny-gpt2", "cpu")
    assert (found["requests"], found["output_tokens"]) == (6, 30)
    assert 48 <= found["input_tokens"] <= 72
    assert found["decode_sequences"] == 3
    assert found["bandwidth_bound_tokens_per_s"] > 0
    assert found["compute_bound_tokens_per_s"] > 0
    assert set(found["step_ms"]) == {"mean", "p50", "p90", "p99", "max"}


def test_offline_refuses_what_does_not_fit(model, capfd):
    assert main(["bench", "offline", str(model), "--input-tokens", "1000"]) == 2
    assert "the context holds 1024" in capfd.readouterr().err


def test_a_models_cost_counts_what_a_step_reads(model):
    found = model_cost(str(model), "bfloat16")
    width, layers, vocab = 32, 2, 600
    matrices = layers * (12 * width**2 + 13 * width) + 2 * width + vocab * width
    assert found.parameters == matrices  # with norms and biases, without rows looked up
    assert found.weight_bytes == 2 * matrices
    assert found.kv_bytes == 2 * 2 * layers * width


def test_quantised_weights_are_read_as_they_are_held(model):
    found = model_cost(str(model), "bfloat16", ModelConfig(quantization="int4"))
    width, layers, vocab = 32, 2, 600
    matrices = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width)}
    matrices["down"] = (width, 4 * width)
    held = sum(FORMATS["int4"].num_bytes(*shape) for shape in matrices.values())
    plain = layers * 13 * width + 2 * width  # norms and biases
    head = FORMATS["int8"].num_bytes(vocab, width)
    assert found.weight_bytes == layers * held + 2 * plain + head
    assert found.parameters == model_cost(str(model), "bfloat16").parameters


def test_bounds():
    limits = ceilings.Ceilings(copy_gb_s=10, read_gb_s=8, gflop_s=1)
    cost = Cost(parameters=100, weight_bytes=400, kv_bytes=10, attention_flops=4)
    assert cost.bandwidth_bound(limits, sequences=2, context=5) == 2 * 10e9 / 500
    assert cost.compute_bound(limits, context=5) == 1e9 / 220


def test_core_measures_throughput_at_every_width(model, quick_ceilings, monkeypatch):
    monkeypatch.setattr(throughput, "OUTPUT", 3)
    found = throughput.measure(model, device="cpu", dtype="float32", rounds=1)
    assert [run["streams"] for run in found["runs"]] == [1, 8, 32]
    assert found["runs"][0]["against_one"] == 1
    assert len(throughput.report(found)) == 3


def test_core_measures_the_overhead_on_both_sides_of_the_boundary():
    found = overhead.measure(sequences=4, context=20, steps=30)
    kinds = ("in_process_ms", "engine_process_ms", "delivery_ms")
    assert all(0 < found[kind]["p50"] < 1000 for kind in kinds)
    assert len(overhead.report(found)) == 3


def test_core_measures_a_long_prompt(quick_ceilings, monkeypatch, tmp_path):
    monkeypatch.setattr(long_prompt, "CONTEXT", 32)
    found = long_prompt.measure_fake(prompt_tokens=6000)
    # 504 tokens a step beside 8 streams, and perhaps a step or two that only hash
    assert 12 <= found["steps_while"] <= 15
    assert found["while_ms"]["max"] >= found["before_ms"]["p50"]
    assert long_prompt.report_fake(found)


@pytest.mark.slow
def test_core_measures_a_long_prompt_on_a_model(quick_ceilings, monkeypatch, tmp_path):
    model = write_model(TINY_LONG, tmp_path / "long", dtype=torch.float32)
    monkeypatch.setattr(long_prompt, "BEFORE", 20)
    monkeypatch.setattr(long_prompt, "WARM", 5)
    found = long_prompt.measure_real(model, device="cpu", dtype="float32", prompt_tokens=3000)
    assert found["while_itl_ms"]["p50"] > 0
    assert long_prompt.report_real(found)
