"""The skeleton of a decoder-only transformer; architectures supply the block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rosellm.roseinfer.attention.step import Heads, Step
from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.attention import Attention
from rosellm.roseinfer.layers.linear import Embedding, Linear
from rosellm.roseinfer.layers.moe import MixtureOfExperts
from rosellm.roseinfer.layers.norm import LayerNorm, RMSNorm
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import Architecture, ModelSpec
from rosellm.roseinfer.quant.formats import Recipe


def build_norm(ops: Ops, spec: ModelSpec) -> nn.Module:
    if spec.norm == "layer":
        return LayerNorm(ops, spec.hidden_size, spec.norm_eps)
    return RMSNorm(ops, spec.hidden_size, spec.norm_eps, offset=spec.norm_offset)


def build_qk_norms(ops: Ops, spec: ModelSpec) -> tuple[RMSNorm, RMSNorm] | None:
    """Norms of queries and of keys, as wide as what they normalise together."""
    if spec.qk_norm is None:
        return None
    counts = (1, 1) if spec.qk_norm == "head" else (spec.heads, spec.kv_heads)
    q, k = (
        RMSNorm(ops, count * spec.head_dim, spec.norm_eps, offset=spec.norm_offset)
        for count in counts
    )
    return q, k


def build_attention(ops: Ops, spec: ModelSpec, layer: int) -> Attention:
    group = next(i for i, g in enumerate(spec.kv_groups) if layer in g.layers)
    scale = spec.attention_scale
    heads = Heads(
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        layer=layer,
        group=group,
        rope=spec.rope_of(layer),
        scale=spec.head_dim**-0.5 if scale is None else scale,
        softcap=spec.attention_softcap,
    )
    return Attention(
        ops,
        heads,
        spec.hidden_size,
        bias=spec.attention_bias,
        out_bias=spec.attention_out_bias,
        qk_norms=build_qk_norms(ops, spec),
    )


class MLP(nn.Module):
    """Two products with an activation between; gated if the activation has two inputs."""

    def __init__(self, ops: Ops, spec: ModelSpec, width: int) -> None:
        super().__init__()
        gated = spec.activation.endswith("_mul")
        parts = {"gate": width, "up": width} if gated else {"up": width}
        self.up = Linear(
            ops, spec.hidden_size, parts, bias=spec.mlp_bias, activation=spec.activation
        )
        self.down = Linear(ops, width, {"down": spec.hidden_size}, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))  # type: ignore[no-any-return]


def build_mlp(ops: Ops, spec: ModelSpec, layer: int) -> nn.Module:
    """The layer's MLP, or its mixture of many."""
    sparse = spec.experts
    if sparse is None or layer not in sparse.layers:
        return MLP(ops, spec, spec.intermediate_size)
    experts = [MLP(ops, spec, sparse.width) for _ in range(sparse.count)]
    return MixtureOfExperts(
        ops, spec.hidden_size, experts, active=sparse.active, normalise=sparse.normalise
    )


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2's and Llama's block."""

    def __init__(self, ops: Ops, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(ops, spec)
        self.attention = build_attention(ops, spec, layer)
        self.mlp_norm = build_norm(ops, spec)
        self.mlp = build_mlp(ops, spec, layer)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Decoder(Model):
    """Embedding, blocks, norm, head."""

    traceable = True

    def __init__(self, ops: Ops, architecture: Architecture, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.embed = Embedding(ops, spec.vocab_size, spec.hidden_size, scale=spec.embedding_scale)
        if spec.learned_positions:
            self.position = Embedding(ops, spec.max_positions, spec.hidden_size)
        blocks = (architecture.block(ops, spec, layer) for layer in range(spec.num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm(ops, spec)
        self.head = Linear(ops, spec.hidden_size, {"head": spec.vocab_size}, bias=False)

    def own_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules but a head whose weight is the embedding's."""
        tied = self.spec.tied
        return ((name, m) for name, m in self.named_modules() if not (tied and m is self.head))

    def hold(self, recipe: Recipe) -> None:
        super().hold(recipe)
        if self.spec.tied:
            self.embed.format = recipe.of("embed")

    def finish(self) -> None:
        if self.spec.tied:
            self.head.share(self.embed)

    def forward(self, ids: Tensor, step: Step, embeddings: Tensor | None = None) -> Tensor:
        x = self.embed(ids) if embeddings is None else embeddings
        if self.spec.learned_positions:
            x = x + self.position(step.positions)
        for block in self.blocks:
            x = block(x, step)
        return self.norm(x)  # type: ignore[no-any-return]

    @property
    def plain_head(self) -> Linear | None:
        return self.head if self.spec.final_softcap is None else None

    def logits(self, hidden: Tensor) -> Logits:
        found, cap = self.head.logits(hidden), self.spec.final_softcap
        if cap is None:
            return found
        return Logits(cap * torch.tanh(found.values / cap), finite=found.finite)
