"""Whole models on Triton's operations, by its interpreter: near the reference, bits their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosellm.roseinfer.runner.cuda_graph import PATIENCE, DecodeGraphs
from rosellm.roseinfer.runner.model_runner import ModelRunner
from tests.models.architectures import BASES, write_model
from tests.runner.decoding import FakeRecorder, on_stand_ins
from tests.tiny_models import build, generate, greedy, random_prompts, write_gpt2, write_llama

from tests.kernels.triton import interpreted  # isort: skip

assert interpreted.triton.knobs.runtime.interpret
# numpy tells of infinities that the kernels mean
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SMALL = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1}


def model(name: str, folder: Path) -> Path:
    """One layer where a test is quick."""
    if name == "gpt2":
        return write_gpt2(folder, n_layer=1)
    if name == "llama":
        return write_llama(folder, **SMALL)
    return write_model(folder, BASES[name])


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma2", "qwen3", "olmo2")),
    ],
)
def test_a_model(name: str, tmp_path: Path) -> None:
    folder = model(name, tmp_path / name)
    prompts = random_prompts([3, 5], 97)
    params = greedy(1)
    ours = build(folder, kernels="triton")
    found = generate(ours, prompts, params)
    wanted = generate(build(folder, kernels="reference"), prompts, params)
    for a, b in zip(found, wanted, strict=True):
        assert a.tokens == b.tokens
        for x, y in zip(a.logprobs[0], b.logprobs[0], strict=True):
            assert x.chosen == pytest.approx(y.chosen, abs=1e-4)
    again = generate(ours, prompts[1:], params)
    assert again == found[1:], "batched = single, prefix hit = cold"


@pytest.mark.slow
def test_replayed_steps_equal_plain_ones_in_bits(tmp_path: Path) -> None:
    """On stand-ins for CUDA graphs: what is recorded reads only what each step uploads."""
    prompts, params = random_prompts([3, 18], 97), greedy(PATIENCE + 6)
    settings = {"kernels": "triton", "prefix_cache": False, "block_size": 8}
    core = build(model("llama", tmp_path / "llama"), **settings)
    expected = generate(core, prompts, params)
    runner, recorder = core.runner, FakeRecorder()
    assert isinstance(runner, ModelRunner)
    graphs = DecodeGraphs(recorder, (3,), (6,), runner._storage.trash_blocks, 1 << 30)
    replayed = on_stand_ins(core, runner._backend, graphs)
    assert generate(replayed, prompts, params) == expected
    assert sum(graph.replays for graph in recorder.graphs) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_the_schedule(name: str, dtype: str, tmp_path: Path) -> None:
    folder = model(name, tmp_path / name)
    prompts, params = random_prompts([3, 40, 17], 97), greedy(3)
    core = build(folder, kernels="triton", dtype=dtype, prefix_cache=False)
    alone = [generate(core, [prompt], params)[0] for prompt in prompts]
    assert generate(core, prompts, params) == alone, "batched = single"
    chunked = build(folder, kernels="triton", dtype=dtype, max_num_batched_tokens=7)
    assert generate(chunked, prompts, params) == alone, "chunked = whole"


def test_what_start_up_says(tmp_path: Path) -> None:
    facts = build(write_llama(tmp_path / "llama", **SMALL), kernels="triton").facts
    assert facts.invariant
    said = {decision.name: decision for decision in facts.decisions}
    assert said["kernels"].value == said["attention"].value == "triton"
    assert "interpreted" in said["kernels"].reason


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"quantization": "int8"}, marks=pytest.mark.slow),
        pytest.param({"quantization": "int4"}, marks=pytest.mark.slow),
        {"quantization": "fp8"},
        pytest.param({"kv_cache_dtype": "fp8"}, marks=pytest.mark.slow),
        {"deterministic": False},
    ],
    ids=str,
)
def test_in_eight_bits_and_by_the_library(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_llama(tmp_path / "llama", **SMALL)
    prompts, params = random_prompts([3, 11], 97), greedy(1)
    ours = build(folder, kernels="triton", **settings)
    assert ours.facts.invariant == settings.get("deterministic", True)
    assert ours.facts.fingerprint.endswith("_invariant") == ours.facts.invariant
    found = generate(ours, prompts, params)
    wanted = generate(build(folder, kernels="reference", **settings), prompts, params)
    # a card rounds to the nearest e4m3, the interpreter cuts off
    near = 5e-3 if "kv_cache_dtype" in settings else 2e-4
    for a, b in zip(found, wanted, strict=True):
        assert a.logprobs[0][0].chosen == pytest.approx(b.logprobs[0][0].chosen, abs=near)
