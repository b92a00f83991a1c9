"""The skeleton of a decoder-only transformer; architectures supply the block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.attention import Attention, Step
from rosellm.roseinfer.layers.linear import Embedding, Linear
from rosellm.roseinfer.layers.norm import LayerNorm, RMSNorm
from rosellm.roseinfer.models.spec import Architecture, DecoderSpec


def build_norm(ops: Ops, spec: DecoderSpec) -> nn.Module:
    kind = RMSNorm if spec.norm == "rms" else LayerNorm
    return kind(ops, spec.hidden_size, spec.norm_eps)


def build_attention(ops: Ops, spec: DecoderSpec, layer: int) -> Attention:
    group = next(i for i, g in enumerate(spec.kv_groups) if layer in g.layers)
    return Attention(
        ops,
        hidden_size=spec.hidden_size,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        layer=layer,
        group=group,
        bias=spec.attention_bias,
    )


class MLP(nn.Module):
    """Two products with an activation between; gated if the activation has two inputs."""

    def __init__(self, ops: Ops, spec: DecoderSpec) -> None:
        super().__init__()
        width = spec.intermediate_size
        gated = spec.activation == "silu_mul"
        parts = {"gate": width, "up": width} if gated else {"up": width}
        self.up = Linear(ops, spec.hidden_size, parts, bias=spec.mlp_bias)
        self.down = Linear(ops, width, {"down": spec.hidden_size}, bias=spec.mlp_bias)
        self._activation = getattr(ops, spec.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self._activation(self.up(x)))  # type: ignore[no-any-return]


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2's and Llama's block."""

    def __init__(self, ops: Ops, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(ops, spec)
        self.attention = build_attention(ops, spec, layer)
        self.mlp_norm = build_norm(ops, spec)
        self.mlp = MLP(ops, spec)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, ops: Ops, architecture: Architecture, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(ops, spec.vocab_size, spec.hidden_size)
        if spec.rope is None:
            self.position = Embedding(ops, spec.max_positions, spec.hidden_size)
        blocks = (architecture.block(ops, spec, layer) for layer in range(spec.num_layers))
        self.blocks = nn.ModuleList(blocks)
        self.norm = build_norm(ops, spec)
        self.head = Linear(ops, spec.hidden_size, {"head": spec.vocab_size}, bias=False)

    def num_weights(self) -> int:
        """Numbers to load: all parameters, a table that the head shares once."""
        return sum(p.numel() for module in self._own_modules() for p in module.parameters(False))

    def allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        """Give every parameter memory of its own, not filled yet; they may be on "meta" before.

        Not ``to_empty``: that looks at the meta tensors, for which torch imports sympy.
        """
        for module in self._own_modules():
            for name, old in list(module.named_parameters(recurse=False)):
                new = torch.empty(old.shape, dtype=dtype, device=device)
                setattr(module, name, nn.Parameter(new, requires_grad=False))

    def pack(self) -> None:
        """Lay all weights out for the kernels. Call once, after loading."""
        for module in self._own_modules():
            if isinstance(module, Embedding | Linear):
                module.pack()
        if self.spec.tied:
            self.head.share(self.embed)

    @torch.inference_mode()
    def rows_are_independent(self) -> bool:
        """Try one product of each shape on this machine: libraries choose their loops by shape."""
        layers = [module for module in self.modules() if isinstance(module, Linear)]
        shapes = {(*layer.parts.values(), layer.in_features): layer for layer in layers}
        return all(layer.rows_are_independent() for layer in shapes.values())

    def _own_modules(self) -> Iterator[nn.Module]:
        """All modules but a head whose weight is the embedding's."""
        return (m for m in self.modules() if not (self.spec.tied and m is self.head))

    def forward(self, ids: Tensor, step: Step, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states [T, H] of token ids [T]; ``embeddings`` [T, H] override the table."""
        x = self.embed(ids) if embeddings is None else embeddings
        if self.spec.rope is None:
            x = x + self.position(step.positions)
        for block in self.blocks:
            x = block(x, step)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [R, vocabulary] in fp32 of hidden states [R, H]."""
        scores: Tensor = self.head(hidden)
        return scores.float()
