"""Mixtures of experts equal transformers', and a token's bits know nothing of the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rosellm.bench.cost import Cost, model_cost
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.kernels import reference
from rosellm.roseinfer.layers.moe import MixtureOfExperts
from rosellm.roseinfer.models.registry import find_architecture
from tests.models.oracle import assert_equals_transformers
from tests.tiny_models import (
    LLAMA,
    build,
    generate,
    greedy,
    llama_weights,
    random_prompts,
    read_spec,
    write_safetensors,
)

slow = pytest.mark.slow

MIXTRAL: dict[str, Any] = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "sliding_window": None,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
}
QWEN3: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 10,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 22,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": False,
}
ODD = {"hidden_size": 45, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6}

CASES: dict[str, dict[str, Any]] = {
    "mixtral: two of five": MIXTRAL,
    "mixtral: one of three, odd sizes": {**MIXTRAL, **ODD, "num_local_experts": 3,
                                         "num_experts_per_tok": 1, "intermediate_size": 33},
    "mixtral: a window, tied": {**MIXTRAL, "sliding_window": 19, "tie_word_embeddings": True},
    "qwen3_moe: three of seven": QWEN3,
    "qwen3_moe: every second layer sparse": {**QWEN3, "num_hidden_layers": 3,
                                             "decoder_sparse_step": 2, "norm_topk_prob": False},
}  # fmt: skip
SLOW_CASES: dict[str, dict[str, Any]] = {
    "mixtral: all of four": {**MIXTRAL, "num_local_experts": 4, "num_experts_per_tok": 4},
    "qwen3_moe: two of seven, not normalised, tied": {
        **QWEN3, "norm_topk_prob": False, "tie_word_embeddings": True, "num_experts_per_tok": 2},
    "qwen3_moe: one active, biases": {**QWEN3, "num_experts_per_tok": 1, "norm_topk_prob": False,
                                      "attention_bias": True},
    "qwen3_moe: dense layers": {**QWEN3, "num_hidden_layers": 3, "mlp_only_layers": [0, 2]},
    "qwen3_moe: dense throughout": {**QWEN3, "mlp_only_layers": [0, 1]},
    "qwen3_moe: a window": {**QWEN3, **ODD, "use_sliding_window": True, "sliding_window": 17},
}  # fmt: skip


def write_moe(folder: Path, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    """A folder as a publisher has it: a tensor for each matrix of each expert."""
    weights = llama_weights(config)
    generator = torch.Generator().manual_seed(1)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if config["model_type"] == "qwen3_moe":
            weights[f"{at}self_attn.q_norm.weight"] = 1 + matrix(config["head_dim"])
            weights[f"{at}self_attn.k_norm.weight"] = 1 + matrix(config["head_dim"])
        if is_sparse(config, layer):
            weights = {name: t for name, t in weights.items() if not name.startswith(f"{at}mlp.")}
            weights |= {at + name: matrix(*shape) for name, shape in mixture_shapes(config)}
    folder.mkdir(parents=True)
    named = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps({**config, "dtype": named}))
    write_safetensors(folder, {name: tensor.to(dtype) for name, tensor in weights.items()})
    return folder


def mixture_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Names and shapes of one layer's router and experts."""
    hidden = config["hidden_size"]
    if config["model_type"] == "mixtral":
        mixture, names = "block_sparse_moe", ("w1", "w3", "w2")
        count, inner = config["num_local_experts"], config["intermediate_size"]
    else:
        mixture, names = "mlp", ("gate_proj", "up_proj", "down_proj")
        count, inner = config["num_experts"], config["moe_intermediate_size"]
    yield f"{mixture}.gate.weight", (count, hidden)
    for expert in range(count):
        for name, shape in zip(names, [(inner, hidden)] * 2 + [(hidden, inner)], strict=True):
            yield f"{mixture}.experts.{expert}.{name}.weight", shape


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    if config["model_type"] == "mixtral":
        return True
    return (
        layer not in config["mlp_only_layers"] and not (layer + 1) % config["decoder_sparse_step"]
    )


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(c, marks=slow) for c in SLOW_CASES)])
def test_equals_transformers(case: str, tmp_path: Path) -> None:
    config = {**CASES, **SLOW_CASES}[case]
    assert_equals_transformers(write_moe(tmp_path / "model", config))


NEW = 6
BITS = [
    pytest.param(MIXTRAL, torch.float32, id="mixtral-float32"),
    pytest.param(MIXTRAL, torch.bfloat16, id="mixtral-bfloat16", marks=slow),
    pytest.param(QWEN3, torch.float32, id="qwen3_moe-float32", marks=slow),
    pytest.param(QWEN3, torch.bfloat16, id="qwen3_moe-bfloat16"),
]


@pytest.mark.parametrize(("config", "dtype"), BITS)
def test_the_same_bits_however_it_is_run(
    config: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Alone, in a batch, in chunks, over a prefix hit, preempted."""
    folder = write_moe(tmp_path / "model", config, dtype)
    prompts = random_prompts([1, 40, 7, 16, 60, 33, 17, 2], 97)
    every = [greedy(NEW, seed=i, temperature=i % 2 * 0.9) for i in range(len(prompts))]
    bare = build(folder, prefix_cache=False)
    assert bare.facts.invariant
    alone = [
        generate(bare, [prompt], params)[0] for prompt, params in zip(prompts, every, strict=True)
    ]
    together = build(folder)
    assert generate(together, prompts, every) == alone
    again = generate(together, prompts, every)
    assert again == alone
    assert sum(result.cached[0] for result in again) > 100
    assert generate(build(folder, max_num_batched_tokens=11), prompts, every) == alone
    preempting = build(folder, num_blocks=60, block_size=2, max_model_len=100)
    assert generate(preempting, prompts, every) == alone
    assert preempting.scheduler.stats().preemptions > 0


# -- the router -------------------------------------------------------------------


def test_equal_scores_are_taken_by_index() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    for count in range(1, 6):
        _, chosen = reference.route(scores, count, True)
        assert chosen.tolist() == [[1, 2, 4, 0, 3][:count], [0, 1, 2, 3, 4][:count]]


@pytest.mark.parametrize("experts", [1, 3, 8, 60, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_a_softmax(experts: int, dtype: torch.dtype) -> None:
    scores = torch.randn(40, experts, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    count = min(experts, 4)
    wanted = scores.double().softmax(-1)
    weights, chosen = reference.route(scores, count, False)
    torch.testing.assert_close(weights.double(), wanted.gather(1, chosen), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights.double(), wanted.topk(count).values, rtol=1e-5, atol=1e-7)
    normalised, same = reference.route(scores, count, True)
    assert torch.equal(chosen, same)
    torch.testing.assert_close(normalised.sum(-1), torch.ones(40))
    for row in range(40):
        alone = reference.route(scores[row : row + 1], count, True)
        assert torch.equal(alone[0][0], normalised[row])
        assert torch.equal(alone[1][0], chosen[row])


def test_a_mixture_is_the_sum_of_its_experts(tmp_path: Path) -> None:
    """Written out, token by token; and each token has the bits that it has alone."""
    mixture = _mixture(write_moe(tmp_path / "model", QWEN3))
    x = torch.randn(33, 48, generator=torch.Generator().manual_seed(3))
    together = mixture(x)
    odds = mixture.router(x).double().softmax(-1)
    for row in range(len(x)):
        alone = x[row : row + 1]
        weights, chosen = odds[row].topk(3)
        results = torch.stack([mixture.experts[int(e)](alone)[0] for e in chosen]).double()
        wanted = (results * (weights / weights.sum())[:, None]).sum(0)
        torch.testing.assert_close(together[row].double(), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(mixture(alone)[0], together[row])


def _mixture(folder: Path) -> MixtureOfExperts:
    """The first layer's, with its weights."""
    runner: Any = build(folder)._runner
    mixture = runner._model.blocks[0].mlp
    assert isinstance(mixture, MixtureOfExperts)
    return mixture


# -- sizes and refusals -----------------------------------------------------------


def test_cost_counts_what_is_active(tmp_path: Path) -> None:
    dense = model_cost(
        str(write_moe(tmp_path / "dense", {**QWEN3, "mlp_only_layers": [0, 1]})), "float32"
    )
    sparse = model_cost(str(write_moe(tmp_path / "sparse", QWEN3)), "float32")
    expert, mlp, router = 3 * 48 * 22, 3 * 48 * 84, 7 * 48
    assert sparse.parameters == dense.parameters + 2 * (3 * expert + router - mlp)
    assert sparse.weight_bytes == dense.weight_bytes + 4 * 2 * (7 * expert + router - mlp)
    assert (dense.expert_bytes, sparse.expert_bytes) == (0, 4 * 2 * 7 * expert)


def test_few_sequences_read_few_experts() -> None:
    from rosellm.bench.ceilings import Ceilings

    limits = Ceilings(copy_gb_s=1, read_gb_s=1, gflop_s=1)
    cost = Cost(10, 1000, kv_bytes=0, attention_flops=0, expert_bytes=800, active_share=0.25)
    assert cost.bandwidth_bound(limits, 1, 0) == pytest.approx(1e9 / 400)
    assert cost.bandwidth_bound(limits, 2, 0) == pytest.approx(2e9 / 550)
    assert cost.bandwidth_bound(limits, 1000, 0) == pytest.approx(1000e9 / 1000)


def test_the_count_as_transformers_writes_it() -> None:
    config = {key: value for key, value in QWEN3.items() if key != "num_experts"}
    spec = find_architecture("Qwen3MoeForCausalLM").read_config({**config, "num_local_experts": 9})
    assert spec.experts is not None
    assert spec.experts.count == 9


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"num_experts_per_tok": 8}, "7 experts, 8 of them active"),
        ({"num_experts_per_tok": 0}, "7 experts, 0 of them active"),
        ({"num_experts": 1 << 40}, "experts, 3 of them active"),
        ({"num_experts": -1}, "-1 experts"),
        ({"moe_intermediate_size": 0}, "experts of width 0"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ({"mlp_only_layers": 3}, "mlp_only_layers = 3"),
        ({"sliding_window": 0, "use_sliding_window": True}, "sliding_window = 0"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    folder = write_moe(tmp_path / "model", QWEN3)
    (folder / "config.json").write_text(json.dumps({**QWEN3, **changes}))
    with pytest.raises(ModelError, match=wanted):
        read_spec(folder)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"num_experts": 8}, "mlp.gate.weight: expected shape .8, 48., found .7, 48."),
        ({"num_experts": 6}, "experts.6.*not part|gate.weight: expected shape .6, 48."),
        ({"mlp_only_layers": [0]}, "not part of this model"),
        ({"moe_intermediate_size": 24}, "expected shape .48, 24., found .48, 22."),
    ],
    ids=str,
)
def test_weights_that_do_not_fit(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    folder = write_moe(tmp_path / "model", QWEN3)
    (folder / "config.json").write_text(json.dumps({**QWEN3, **changes}))
    with pytest.raises(ModelError, match=wanted):
        build(folder)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = write_moe(tmp_path / "model", QWEN3)
    name = "model.layers.1.mlp.experts.6.up_proj.weight"
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    write_safetensors(folder, weights)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.6\.up_proj\.weight: missing"):
        build(folder)
