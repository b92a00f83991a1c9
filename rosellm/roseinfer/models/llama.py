"""Llama (arXiv:2302.13971, arXiv:2307.09288): RMSNorm, rope, gated SiLU, grouped KV heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.models.decoder import Decoder, PreNormBlock
from rosellm.roseinfer.models.spec import Architecture, ConfigReader, ModelSpec, WeightMap


def read_rope(config: ConfigReader, head_dim: int) -> RopeSpec:
    """Both spellings: ``rope_theta`` + ``rope_scaling``, and the newer ``rope_parameters``."""
    nested = config.table("rope_parameters")
    scaling = config.table("rope_scaling") or nested
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ModelError(f"rope scaling {shown(repr(kind))} is not supported yet")
    theta = ConfigReader(nested).number("rope_theta", config.number("rope_theta", 10000.0))
    return RopeSpec(theta=theta, dim=head_dim)


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader(values)
    hidden_size = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden_size // max(heads, 1))
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=config.integer("max_position_embeddings", 2048),
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        activation=config.choice("hidden_act", "silu", {"silu": "silu_mul"}),
        rope=read_rope(config, head_dim),
        tied=config.flag("tie_word_embeddings", False),
        attention_bias=config.flag("attention_bias", False),
        attention_out_bias=config.flag("attention_bias", False),
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
