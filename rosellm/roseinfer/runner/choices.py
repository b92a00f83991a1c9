"""What an engine is going to be, decided from a config and a model's description alone.

No weights here: the model stands on the meta device, its parameters are shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.config import EngineConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.kernels.table import Ops, choose_ops
from rosellm.roseinfer.messages import Decision
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import Architecture, ModelSpec
from rosellm.roseinfer.quant.formats import Recipe
from rosellm.roseinfer.runner import resolve


@dataclass(frozen=True)
class Described:
    """What a checkpoint says of itself.

    Attributes:
        dtype: type of the weights as stored, such as "float32".
        recipe: how it is quantised already, if it is.
    """

    architecture: Architecture
    spec: ModelSpec
    dtype: str
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Choices:
    """Every decision that needs no memory to be looked at.

    Attributes:
        model: as the architecture builds it, its formats set, nothing loaded.
        decisions: on device and type.
        backend, attention_decision: how attention is computed.
        graphs: whether decode steps are recorded as CUDA graphs.
        kv_decisions, step_decision, graph_decisions: on the cache's type, the step's budget and
            CUDA graphs.
        overlap, overlap_decision: whether a step is submitted before the last one is back.
    """

    config: EngineConfig
    described: Described
    device: torch.device
    dtype: torch.dtype
    recipe: Recipe
    kv_dtype: torch.dtype
    step_tokens: int
    ops: Ops
    model: Model
    backend: AttentionBackend
    attention_decision: Decision
    graphs: bool
    decisions: Sequence[Decision]
    kv_decisions: Sequence[Decision]
    step_decision: Decision
    overlap: bool
    overlap_decision: Decision
    graph_decisions: Sequence[Decision]

    @property
    def spec(self) -> ModelSpec:
        return self.described.spec


def choose(config: EngineConfig, described: Described) -> Choices:
    """Resolve everything that is "auto".

    Raises:
        ConfigError: the config cannot be met.
    """
    _check(config)
    spec = described.spec
    device, device_decision = resolve.resolve_device(config.model)
    dtype, dtype_decision = resolve.resolve_dtype(config.model, described.dtype, device)
    kv_dtype, kv_decisions = resolve.resolve_kv_dtype(config.cache, spec, dtype)
    recipe = resolve.resolve_quantization(config.model, described.recipe)
    step_tokens, step_decision = resolve.resolve_step_tokens(config.scheduler, spec, device)
    overlap, overlap_decision = resolve.resolve_overlap(config.scheduler, device)
    ops = choose_ops(device, config.model.kernels, dtype, deterministic=config.model.deterministic)
    resolve.check_fp8(ops.lacks, ops.lacks_cache, recipe, kv_dtype)
    backend, attention_decision = resolve.resolve_attention(
        config, spec, ops, device, dtype, kv_dtype
    )
    graphs, graph_decisions = resolve.resolve_cuda_graphs(config.model, spec, backend, device)
    with torch.device("meta"):
        model = described.architecture.build(ops, spec)
    model.hold(recipe)
    return Choices(
        config=config,
        described=described,
        device=device,
        dtype=dtype,
        recipe=recipe,
        kv_dtype=kv_dtype,
        step_tokens=step_tokens,
        ops=ops,
        model=model,
        backend=backend,
        attention_decision=attention_decision,
        graphs=graphs,
        decisions=(device_decision, dtype_decision),
        kv_decisions=kv_decisions,
        step_decision=step_decision,
        overlap=overlap,
        overlap_decision=overlap_decision,
        graph_decisions=graph_decisions,
    )


def _check(config: EngineConfig) -> None:
    if config.scheduler.max_num_seqs < 1:
        raise ConfigError("--max-num-seqs must be at least 1")
    if config.scheduler.max_queue < 1:
        raise ConfigError("--max-queue must be at least 1")
