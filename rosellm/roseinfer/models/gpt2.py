"""GPT-2 in two forms: Hugging Face's, and the checkpoint that rosetrainer writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.models.activations import PLAIN
from rosellm.roseinfer.models.decoder import Decoder, PreNormBlock
from rosellm.roseinfer.models.spec import Architecture, ConfigReader, ModelSpec, WeightMap


def _spec(
    *,
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    heads: int,
    max_positions: int,
    norm_eps: float,
    activation: Activation,
    tied: bool,
) -> ModelSpec:
    if heads > 0 and hidden_size % heads:
        raise ModelError(
            f"the model's config has a hidden size (n_embd, d_model) of {hidden_size}, "
            f"not a multiple of its {heads} heads"
        )
    return ModelSpec(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden_size // max(heads, 1),
        max_positions=max_positions,
        norm="layer",
        norm_eps=norm_eps,
        activation=activation,
        tied=tied,
        learned_positions=True,
        attention_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
    )


def read_hf_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader(values)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        config.refuse(key)
    config.refuse("scale_attn_weights", harmless=True)
    hidden_size = config.integer("n_embd")
    return _spec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("n_inner", 4 * hidden_size),
        num_layers=config.integer("n_layer"),
        heads=config.integer("n_head"),
        max_positions=config.integer("n_positions"),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        activation=config.choice("activation_function", "gelu_new", PLAIN),
        tied=config.flag("tie_word_embeddings", True),
    )


def read_rose_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader(values)
    return _spec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("d_model"),
        intermediate_size=config.integer("d_ff"),
        num_layers=config.integer("n_layers"),
        heads=config.integer("n_heads"),
        max_positions=config.integer("max_position_embeddings"),
        norm_eps=1e-5,
        activation="gelu_erf",
        tied=True,
    )


GPT2 = Architecture(
    read_config=read_hf_config,
    skeleton=Decoder,
    block=PreNormBlock,
    weights=WeightMap(
        names={
            "wte.weight": "embed.weight",
            "wpe.weight": "position.weight",
            "h.{i}.ln_1.weight": "blocks.{i}.attention_norm.weight",
            "h.{i}.attn.c_attn.weight": "blocks.{i}.attention.qkv.weight",
            "h.{i}.attn.c_proj.weight": "blocks.{i}.attention.out.weight",
            "h.{i}.ln_2.weight": "blocks.{i}.mlp_norm.weight",
            "h.{i}.mlp.c_fc.weight": "blocks.{i}.mlp.up.weight",
            "h.{i}.mlp.c_proj.weight": "blocks.{i}.mlp.down.weight",
            "ln_f.weight": "norm.weight",
            "lm_head.weight": "head.weight",
        },
        prefixes=("transformer.",),
        # Hugging Face keeps GPT-2's projections as "Conv1D", input first.
        transposed=frozenset(
            {
                "h.{i}.attn.c_attn.weight",
                "h.{i}.attn.c_proj.weight",
                "h.{i}.mlp.c_fc.weight",
                "h.{i}.mlp.c_proj.weight",
            }
        ),
        ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
    ),
)

ROSE_GPT = Architecture(
    read_config=read_rose_config,
    skeleton=Decoder,
    block=PreNormBlock,
    weights=WeightMap(
        names={
            "token_embedding.weight": "embed.weight",
            "position_embedding.weight": "position.weight",
            "blocks.{i}.ln1.weight": "blocks.{i}.attention_norm.weight",
            "blocks.{i}.attn.qkv_proj.weight": "blocks.{i}.attention.qkv.weight",
            "blocks.{i}.attn.out_proj.weight": "blocks.{i}.attention.out.weight",
            "blocks.{i}.ln2.weight": "blocks.{i}.mlp_norm.weight",
            "blocks.{i}.mlp.fc1.weight": "blocks.{i}.mlp.up.weight",
            "blocks.{i}.mlp.fc2.weight": "blocks.{i}.mlp.down.weight",
            "ln_f.weight": "norm.weight",
            "lm_head.weight": "head.weight",
        },
        prefixes=("_orig_mod.", "module."),
    ),
)
