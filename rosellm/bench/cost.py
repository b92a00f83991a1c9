"""What a decoding step must at least read and compute, from the model's shape alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rosellm.bench.ceilings import Ceilings
from rosellm.roseinfer.config import CacheConfig, ModelConfig

if TYPE_CHECKING:
    from rosellm.roseinfer.quant.formats import Format

ROW_LOOKUPS = ("embed.", "position.", "token_type.")
"""Tables of which a step reads single rows. A tied head counts as a matrix of its own."""

EXPERTS = ".experts."
"""Part of the names of what only some tokens pass through."""


@dataclass(frozen=True)
class Cost:
    """Sizes of a model in the type that it runs in.

    Attributes:
        parameters: of all matrices that a token passes through.
        weight_bytes: of all matrices, read once a step but for experts that no token chose.
        kv_bytes: that a token keeps in the KV cache.
        attention_flops: for a token, per token before it.
        expert_bytes: of the weights, those of experts.
        active_share: how much of them a token chooses.
    """

    parameters: int
    weight_bytes: int
    kv_bytes: int
    attention_flops: int
    expert_bytes: int = 0
    active_share: float = 1.0

    def bandwidth_bound(self, ceilings: Ceilings, sequences: int, context: float) -> float:
        """Most decoded tokens a second if only reading weights and KV took time.

        Tokens are taken to choose their experts evenly and each for itself.
        """
        unread = self.expert_bytes * (1 - self.active_share) ** sequences
        step_bytes = self.weight_bytes - unread + sequences * context * self.kv_bytes
        return sequences * ceilings.bytes_s / step_bytes

    def compute_bound(self, ceilings: Ceilings, context: float) -> float:
        """Most tokens a second, of prompts or answers, if only arithmetic took time."""
        return ceilings.flop_s / (2 * self.parameters + context * self.attention_flops)


def model_cost(
    model: str,
    dtype: str,
    quantized: ModelConfig | None = None,
    cache: CacheConfig | None = None,
) -> Cost:
    """Read a model's shape; its weights are not loaded.

    Args:
        quantized: how its weights are held, by kernels that keep them in their few bits.
        cache: how keys and values are; default: in that type.
    """
    import torch

    from rosellm.roseinfer.kernels.table import choose_ops
    from rosellm.roseinfer.loading.open import open_checkpoint
    from rosellm.roseinfer.models.registry import find_architecture
    from rosellm.roseinfer.quant.formats import Recipe
    from rosellm.roseinfer.runner.resolve import resolve_kv_dtype, resolve_quantization

    kind: torch.dtype = getattr(torch, dtype)
    checkpoint = open_checkpoint(model)
    architecture = find_architecture(checkpoint.architecture)
    spec = architecture.read_config(checkpoint.config)
    with torch.device("meta"):
        model_parts = architecture.build(choose_ops(torch.device("cpu")), spec)
    recipe = resolve_quantization(quantized, checkpoint.recipe) if quantized else Recipe()
    shapes = {
        name: parameter.shape
        for name, parameter in model_parts.named_parameters()
        if not name.startswith(ROW_LOOKUPS)
    }
    sizes = {name: shape.numel() for name, shape in shapes.items()}
    num_bytes = {
        name: _bytes(shape, kind.itemsize, recipe.of(name.removesuffix(".weight")))
        for name, shape in shapes.items()
    }
    every = sum(sizes.values())
    experts = sum(size for name, size in sizes.items() if EXPERTS in name)
    share = spec.experts.active / spec.experts.count if spec.experts else 1.0
    kv_dtype, _ = resolve_kv_dtype(cache or CacheConfig(), spec, kind)
    return Cost(
        parameters=every - experts + round(experts * share),
        weight_bytes=sum(num_bytes.values()),
        kv_bytes=sum(group.bytes_per_token(kv_dtype) for group in spec.kv_groups),
        attention_flops=4 * spec.num_layers * spec.heads * spec.head_dim,
        expert_bytes=sum(size for name, size in num_bytes.items() if EXPERTS in name),
        active_share=share,
    )


def _bytes(shape: Sequence[int], itemsize: int, format: Format | None) -> int:
    """Of a matrix, or of a vector, which is never quantised."""
    if format is None or len(shape) < 2:
        return math.prod(shape) * itemsize
    return format.num_bytes(shape[0], shape[1])
