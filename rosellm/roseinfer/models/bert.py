"""BERT (arXiv:1810.04805), and RoBERTa (arXiv:1907.11692), whose table of positions begins
after that of the padding token; MiniLM and most small embedding models are one of the two.

Heads and poolers of a checkpoint are left aside: the vector is pooled from the hidden states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.models.activations import PLAIN
from rosellm.roseinfer.models.decoder import build_attention, build_mlp, build_norm
from rosellm.roseinfer.models.encoder import Encoder
from rosellm.roseinfer.models.spec import Architecture, ConfigReader, ModelSpec, WeightMap


def _read(values: Mapping[str, Any], position_offset: int) -> ModelSpec:
    config = ConfigReader(values)
    config.refuse("is_decoder")
    config.refuse("position_embedding_type", harmless="absolute")
    hidden_size = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    if heads > 0 and hidden_size % heads:
        raise ModelError(
            f"the model's config has a hidden_size of {hidden_size}, "
            f"not a multiple of its {heads} heads"
        )
    if position_offset < 0:
        raise ModelError(f"the model's config has pad_token_id = {position_offset - 1}")
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // max(heads, 1),
        max_positions=config.integer("max_position_embeddings") - position_offset,
        norm="layer",
        norm_eps=config.number("layer_norm_eps", 1e-12),
        activation=config.choice("hidden_act", "gelu", PLAIN),
        learned_positions=True,
        position_offset=position_offset,
        token_types=config.integer("type_vocab_size", 2),
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        causal=False,
        pooling="mean",
        generates=False,
    )


def read_bert_config(values: Mapping[str, Any]) -> ModelSpec:
    return _read(values, position_offset=0)


def read_roberta_config(values: Mapping[str, Any]) -> ModelSpec:
    return _read(values, position_offset=ConfigReader(values).integer("pad_token_id", 1) + 1)


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in the first transformer."""

    def __init__(self, ops: Ops, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self.attention = build_attention(ops, spec, layer)
        self.attention_norm = build_norm(ops, spec)
        self.mlp = build_mlp(ops, spec, layer)
        self.mlp_norm = build_norm(ops, spec)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.attention_norm(x + self.attention(x, step))
        return self.mlp_norm(x + self.mlp(x))  # type: ignore[no-any-return]


_THEIRS = "encoder.layer.{i}."
_OURS = "blocks.{i}."

_WEIGHTS = WeightMap(
    names={
        "embeddings.word_embeddings.weight": "embed.weight",
        "embeddings.position_embeddings.weight": "position.weight",
        "embeddings.token_type_embeddings.weight": "token_type.weight",
        "embeddings.LayerNorm.weight": "norm.weight",
        _THEIRS + "attention.self.query.weight": _OURS + "attention.qkv.weight:q",
        _THEIRS + "attention.self.key.weight": _OURS + "attention.qkv.weight:k",
        _THEIRS + "attention.self.value.weight": _OURS + "attention.qkv.weight:v",
        _THEIRS + "attention.output.dense.weight": _OURS + "attention.out.weight",
        _THEIRS + "attention.output.LayerNorm.weight": _OURS + "attention_norm.weight",
        _THEIRS + "intermediate.dense.weight": _OURS + "mlp.up.weight",
        _THEIRS + "output.dense.weight": _OURS + "mlp.down.weight",
        _THEIRS + "output.LayerNorm.weight": _OURS + "mlp_norm.weight",
    },
    prefixes=("bert.", "roberta."),
    endings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    ignored=(r"embeddings\.(position|token_type)_ids", r"pooler\..*", r"cls\..*", r"lm_head\..*"),
)

BERT = Architecture(read_bert_config, _WEIGHTS, PostNormBlock, Encoder)
ROBERTA = Architecture(read_roberta_config, _WEIGHTS, PostNormBlock, Encoder)
