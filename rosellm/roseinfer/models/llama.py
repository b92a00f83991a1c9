"""Llama (arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783) and what its descendants share:
RMSNorm, rope, gated SiLU, grouped KV heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.activations import GATED
from rosellm.roseinfer.models.decoder import Decoder, PreNormBlock
from rosellm.roseinfer.models.rope_config import read_lengths, read_rope
from rosellm.roseinfer.models.spec import Architecture, ConfigReader, ModelSpec, WeightMap


def read_base(
    config: ConfigReader,
    *,
    activation_key: str = "hidden_act",
    fraction: float | None = None,
    aliases: Mapping[str, str] = {},
) -> ModelSpec:
    """The keys that descendants have in common; no biases, windows or further norms.

    Args:
        fraction, aliases: see ``read_rope``.
    """
    config.refuse("quantization_config", harmless={})
    hidden_size = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden_size // max(heads, 1))
    rope = read_rope(config, head_dim, fraction=fraction, aliases=aliases)
    max_positions, stretched_positions = read_lengths(config, rope)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=max_positions,
        stretched_positions=stretched_positions,
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.choice(activation_key, "silu", GATED),
        rope=rope,
        tied=config.flag("tie_word_embeddings", False),
    )


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader(values)
    bias = config.flag("attention_bias", False)
    return replace(
        read_base(config),
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )


LLAMA = Architecture(
    read_config=read_config,
    skeleton=Decoder,
    block=PreNormBlock,
    weights=WeightMap(
        names={
            "embed_tokens.weight": "embed.weight",
            "layers.{i}.input_layernorm.weight": "blocks.{i}.attention_norm.weight",
            "layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attention.qkv.weight:q",
            "layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attention.qkv.weight:k",
            "layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attention.qkv.weight:v",
            "layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attention.out.weight",
            "layers.{i}.post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
            "layers.{i}.mlp.gate_proj.weight": "blocks.{i}.mlp.up.weight:gate",
            "layers.{i}.mlp.up_proj.weight": "blocks.{i}.mlp.up.weight:up",
            "layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
            "norm.weight": "norm.weight",
            "lm_head.weight": "head.weight",
        },
        prefixes=("model.",),
        ignored=(r".*rotary_emb\.inv_freq",),
    ),
)
