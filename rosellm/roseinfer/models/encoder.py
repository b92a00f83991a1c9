"""The skeleton of an encoder: it gives vectors, not tokens; architectures supply the block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.linear import Embedding
from rosellm.roseinfer.models.decoder import build_norm
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.models.spec import Architecture, ModelSpec


class Encoder(Model):
    """Embeddings of tokens, positions and the first token type; norm; blocks. No head."""

    def __init__(self, ops: Ops, architecture: Architecture, spec: ModelSpec) -> None:
        super().__init__(spec)
        rows = spec.max_positions + spec.position_offset
        self.embed = Embedding(ops, spec.vocab_size, spec.hidden_size)
        self.position = Embedding(ops, rows, spec.hidden_size)
        self.token_type = Embedding(ops, spec.token_types, spec.hidden_size)
        self.norm = build_norm(ops, spec)
        blocks = (architecture.block(ops, spec, layer) for layer in range(spec.num_layers))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, ids: Tensor, step: Step, embeddings: Tensor | None = None) -> Tensor:
        x: Tensor = self.embed(ids) if embeddings is None else embeddings
        x = x + self.token_type(torch.zeros_like(ids))
        x = x + self.position(step.positions + self.spec.position_offset)
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, step)
        return x
