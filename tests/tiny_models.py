"""Tiny models with random weights, written to disk, and engines over them.

Nothing here needs transformers: the files are written name by name, as a publisher would
have, so that the tests that compare with transformers have an independent starting point.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rosellm.roseinfer.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SchedulerConfig,
)
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.loading.open import open_checkpoint
from rosellm.roseinfer.messages import Add, Logprobs, RowError
from rosellm.roseinfer.models.registry import find_architecture
from rosellm.roseinfer.models.spec import ModelSpec
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.runner.resolve import resolve_device, resolve_dtype, resolve_kv_dtype
from rosellm.roseinfer.step import StepPlan, Work

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
}

ROSE_GPT: dict[str, Any] = {
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 48,
    "d_ff": 172,
    "dropout": 0.1,
}


# -- checkpoints ------------------------------------------------------------------


def write_llama(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    seed: int = 0,
    std: float = 0.2,
    **overrides: Any,
) -> Path:
    """A Hugging Face folder of a Llama. ``overrides`` are keys of config.json."""
    config = {**LLAMA, **overrides}
    return _write_folder(folder, config, llama_weights(config, seed, std), dtype, shards)


def write_gpt2(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    seed: int = 0,
    std: float = 0.2,
    **overrides: Any,
) -> Path:
    """A Hugging Face folder of a GPT-2. ``overrides`` are keys of config.json."""
    config = {**GPT2, **overrides}
    return _write_folder(folder, config, gpt2_weights(config, seed, std), dtype, shards)


def write_rose_gpt(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    prefix: str = "",
    seed: int = 0,
    std: float = 0.2,
    extra: Mapping[str, Any] = {},
    **overrides: Any,
) -> Path:
    """A checkpoint as rosetrainer saves it. ``extra`` replaces keys beside the model."""
    config = {**ROSE_GPT, **overrides}
    weights = rose_gpt_weights(config, seed, std)
    content = {
        "model": {prefix + name: tensor.to(dtype) for name, tensor in weights.items()},
        "config": config,
        "optimizer": {"state": {}, "param_groups": []},
        "step": 7,
        "scaler": None,
        "scheduler": {"last_epoch": 7, "base_lrs": [1e-3]},
        "extra": {"note": "random weights"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, **extra}, path)
    return path


def llama_weights(config: Mapping[str, Any], seed: int = 0, std: float = 0.2) -> dict[str, Tensor]:
    make = _Random(seed, std)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, config["num_key_value_heads"] * head_dim
    weights = {"model.embed_tokens.weight": make.matrix(config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows, columns in [
            ("q_proj", q, hidden),
            ("k_proj", kv, hidden),
            ("v_proj", kv, hidden),
            ("o_proj", hidden, q),
        ]:
            make.linear(weights, f"{at}self_attn.{name}", rows, columns, config["attention_bias"])
        for name, rows, columns in [
            ("gate_proj", inner, hidden),
            ("up_proj", inner, hidden),
            ("down_proj", hidden, inner),
        ]:
            make.linear(weights, f"{at}mlp.{name}", rows, columns, config["mlp_bias"])
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}{name}.weight"] = make.gain(hidden)
    weights["model.norm.weight"] = make.gain(hidden)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = make.matrix(config["vocab_size"], hidden)
    return weights


def gpt2_weights(config: Mapping[str, Any], seed: int = 0, std: float = 0.2) -> dict[str, Tensor]:
    make = _Random(seed, std)
    hidden = config["n_embd"]
    inner = config["n_inner"] or 4 * hidden
    weights = {
        "transformer.wte.weight": make.matrix(config["vocab_size"], hidden),
        "transformer.wpe.weight": make.matrix(config["n_positions"], hidden),
    }
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        make.norm(weights, f"{at}ln_1", hidden)
        make.norm(weights, f"{at}ln_2", hidden)
        for name, out, into in [
            ("attn.c_attn", 3 * hidden, hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", inner, hidden),
            ("mlp.c_proj", hidden, inner),
        ]:
            make.linear(weights, at + name, out, into, bias=True)
            # Conv1D: the input dimension comes first.
            weights[f"{at}{name}.weight"] = weights[f"{at}{name}.weight"].t().contiguous()
    make.norm(weights, "transformer.ln_f", hidden)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = make.matrix(config["vocab_size"], hidden)
    return weights


def rose_gpt_weights(
    config: Mapping[str, Any], seed: int = 0, std: float = 0.2
) -> dict[str, Tensor]:
    make = _Random(seed, std)
    hidden, inner = config["d_model"], config["d_ff"]
    weights = {
        "token_embedding.weight": make.matrix(config["vocab_size"], hidden),
        "position_embedding.weight": make.matrix(config["max_position_embeddings"], hidden),
    }
    for layer in range(config["n_layers"]):
        at = f"blocks.{layer}."
        make.norm(weights, f"{at}ln1", hidden)
        make.norm(weights, f"{at}ln2", hidden)
        make.linear(weights, f"{at}attn.qkv_proj", 3 * hidden, hidden, bias=True)
        make.linear(weights, f"{at}attn.out_proj", hidden, hidden, bias=True)
        make.linear(weights, f"{at}mlp.fc1", inner, hidden, bias=True)
        make.linear(weights, f"{at}mlp.fc2", hidden, inner, bias=True)
    make.norm(weights, "ln_f", hidden)
    weights["lm_head.weight"] = weights["token_embedding.weight"]
    return weights


class _Random:
    """Weights from one generator, large enough that logits are not flat."""

    def __init__(self, seed: int, std: float) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._std = std

    def matrix(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * self._std

    def gain(self, width: int) -> Tensor:
        return 1 + self.matrix(width)

    def norm(self, weights: dict[str, Tensor], name: str, width: int) -> None:
        weights[f"{name}.weight"] = self.gain(width)
        weights[f"{name}.bias"] = self.matrix(width)

    def linear(
        self, weights: dict[str, Tensor], name: str, rows: int, columns: int, bias: bool
    ) -> None:
        weights[f"{name}.weight"] = self.matrix(rows, columns)
        if bias:
            weights[f"{name}.bias"] = self.matrix(rows)


def _write_folder(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    shards: int,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    named = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps({**config, "dtype": named}, indent=2))
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    write_safetensors(folder, {name: t.to(dtype) for name, t in weights.items()}, shards)
    return folder


def write_safetensors(folder: Path, weights: Mapping[str, Tensor], shards: int = 1) -> None:
    """model.safetensors, or so many shards with their index."""
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    table = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(itertools.islice(weights.items(), index, None, shards))
        save_file(part, folder / name, metadata={"format": "pt"})
        table.update(dict.fromkeys(part, name))
    size = sum(t.numel() * t.itemsize for t in weights.values())
    index_json = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))


# -- engines ----------------------------------------------------------------------


def engine_config(model: Path, **settings: Any) -> EngineConfig:
    """An engine config from fields of its parts by name; on the CPU unless told otherwise."""
    settings = {"model": str(model), "device": "cpu", **settings}
    parts: dict[str, Any] = {}
    for part, kind in [("model", ModelConfig), ("cache", CacheConfig),
                       ("scheduler", SchedulerConfig)]:  # fmt: skip
        names = [field.name for field in dataclasses.fields(kind)]
        parts[part] = kind(**{name: settings.pop(name) for name in names if name in settings})
    assert not settings, f"no such settings: {sorted(settings)}"
    return EngineConfig(**parts)


def build(model: Path, *, num_blocks: int | None = None, **settings: Any) -> EngineCore:
    """An engine over a checkpoint; ``num_blocks`` makes its KV pool that small."""
    config = engine_config(model, **settings)
    if num_blocks is not None:
        spec = read_spec(model)
        _, dtype = _resolved(config)
        kept, _ = resolve_kv_dtype(config.cache, spec, dtype)
        token_bytes = sum(group.bytes_per_token(kept) for group in spec.kv_groups)
        block_bytes = token_bytes * config.cache.block_size
        # One more for the null block, and a little for rounding.
        budget = (num_blocks + 1.25) * block_bytes / (1 << 30)
        config = dataclasses.replace(
            config, cache=dataclasses.replace(config.cache, kv_cache_gb=budget)
        )
    return build_engine(config)


def read_spec(model: Path) -> ModelSpec:
    """What the engine makes of a checkpoint's config."""
    checkpoint = open_checkpoint(str(model))
    return find_architecture(checkpoint.architecture).read_config(checkpoint.config)


def _resolved(config: EngineConfig) -> tuple[torch.device, torch.dtype]:
    stored = open_checkpoint(config.model.model).dtype
    device, _ = resolve_device(config.model)
    return device, resolve_dtype(config.model, stored, device)[0]


@dataclasses.dataclass
class Generated:
    """What one request came to. Lists have an entry for each choice.

    Two of them are equal when their tokens, log-probabilities (as floats, so in bits) and
    reasons for ending are; how much of the prompt was cached does not count.
    """

    tokens: list[list[int]]
    logprobs: list[list[Logprobs]]
    finish: list[str | None]
    cached: list[int] = dataclasses.field(compare=False)
    error: RowError | None = None


def greedy(max_tokens: int = 16, **changes: Any) -> SamplingParams:
    """Greedy parameters that report the five likeliest tokens; nothing stops them early."""
    return SamplingParams(
        **{"seed": 0, "max_tokens": max_tokens, "temperature": 0.0, "logprobs": 5, **changes}
    )


_ids = itertools.count(1)


def generate(
    core: EngineCore,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    n: int | Sequence[int] = 1,
    generated: Sequence[Sequence[Sequence[int]]] | None = None,
    predictions: Sequence[Sequence[int]] | None = None,
    arrivals: Sequence[int] | None = None,
    check: bool = True,
    **fields: Any,
) -> list[Generated]:
    """Run requests together to the end.

    Args:
        params, n: one for all prompts, or one for each.
        generated: for resumption, per prompt, the tokens that each choice already has; the
            result holds only new ones.
        predictions: per prompt, what its answers may turn out to be.
        arrivals: step before which each request is added; default: all before the first.
        check: whether the bookkeeping is checked after every step.
        fields: of every ``Add``, such as tenant or priority.
    """
    count = len(prompts)
    every = [params] * count if isinstance(params, SamplingParams) else list(params)
    choices = [n] * count if isinstance(n, int) else list(n)
    adds = [
        Add(
            next(_ids),
            list(prompt),
            every[i],
            n=choices[i],
            generated=[list(g) for g in generated[i]] if generated else [],
            prediction=list(predictions[i]) if predictions else [],
            **fields,
        )
        for i, prompt in enumerate(prompts)
    ]
    results = {
        add.id: Generated(
            [[] for _ in range(add.n)], [[] for _ in range(add.n)], [None] * add.n, [0] * add.n
        )
        for add in adds
    }
    due = sorted(zip(arrivals or [0] * count, range(count), strict=True))
    open_ids = set(results)
    for step in itertools.count():
        while due and due[0][0] <= step:
            core.add(adds[due.pop(0)[1]])
        for row in core.step().rows:
            _collect(results[row.id], row)
            if row.last:
                open_ids.remove(row.id)
        if check:
            core.scheduler.check()
        if not open_ids:
            break
        assert step < 100_000, "the engine makes no progress"
    assert not core.scheduler.has_work
    while core.has_work:  # a step that was submitted before the last answer was known to end
        assert core.step().rows == []
    return [results[add.id] for add in adds]


def _collect(result: Generated, row: Any) -> None:
    result.tokens[row.choice] += row.tokens
    result.logprobs[row.choice] += row.logprobs or []
    result.cached[row.choice] = row.cached
    result.error = row.error
    if row.finish is not None:
        result.finish[row.choice] = row.finish


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Prompts of those lengths, the same ones each time."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths
    ]


def all_logits(core: EngineCore, tokens: Sequence[int], chunk: int | None = None) -> Tensor:
    """The model's scores [T, vocabulary] at every position, computed in chunks of that size.

    Blocks are taken from the pool's beginning behind the scheduler's back: not while it runs.
    """
    runner = core._runner
    assert isinstance(runner, ModelRunner)
    size = runner._backend._block_size  # type: ignore[attr-defined]
    tables = (tuple(range(-(-len(tokens) // size))),) * len(core.scheduler.cache.pools)
    pieces = []
    for start in range(0, len(tokens), chunk or len(tokens)):
        part = tuple(tokens[start : start + (chunk or len(tokens))])
        hidden = runner.hidden_states(StepPlan((Work(0, start, part, tables),)))
        with torch.inference_mode():
            pieces.append(runner._model.logits(hidden).values.clone())
    core.scheduler.cache.flush()
    return torch.cat(pieces)
