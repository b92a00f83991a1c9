"""Gemma 2 (arXiv:2408.00118): norms before and after attention and MLP, scaled embeddings,
capped scores, every other layer with a window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.models.decoder import PreNormBlock, build_norm
from rosellm.roseinfer.models.layer_types import read_window, read_windows
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

DEFAULTS = {
    "vocab_size": 256000,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**DEFAULTS, **_CAPS, **values})
    spec = read_gemma(config, slides=lambda layer: layer % 2 == 0)
    return replace(spec, attention_softcap=_read_softcap(config, "attn_logit_softcapping"))


def read_gemma(config: ConfigReader, slides: Callable[[int], bool]) -> ModelSpec:
    """What both generations have in common; ``slides`` says which layers have a window."""
    config.refuse("use_bidirectional_attention")
    spec = read_base(config, activation_key="hidden_activation")
    bias = config.flag("attention_bias", False)
    return replace(
        spec,
        windows=read_windows(config, spec.num_layers, read_window(config), slides),
        norm_offset=True,
        embedding_scale=spec.hidden_size**0.5,
        attention_scale=config.positive("query_pre_attn_scalar") ** -0.5,
        final_softcap=_read_softcap(config, "final_logit_softcapping"),
        attention_bias=bias,
        attention_out_bias=bias,
    )


def _read_softcap(config: ConfigReader, key: str) -> float | None:
    return config.positive(key) if config.has(key) else None


class SandwichBlock(PreNormBlock):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, ops: Ops, spec: ModelSpec, layer: int) -> None:
        super().__init__(ops, spec, layer)
        self.attention_out_norm = build_norm(ops, spec)
        self.mlp_out_norm = build_norm(ops, spec)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention_out_norm(self.attention(self.attention_norm(x), step))
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


GEMMA2 = replace(
    LLAMA,
    read_config=read_config,
    block=SandwichBlock,
    weights=replace(
        LLAMA.weights,
        names={
            **LLAMA.weights.names,
            "layers.{i}.post_attention_layernorm.weight": "blocks.{i}.attention_out_norm.weight",
            "layers.{i}.pre_feedforward_layernorm.weight": "blocks.{i}.mlp_norm.weight",
            "layers.{i}.post_feedforward_layernorm.weight": "blocks.{i}.mlp_out_norm.weight",
        },
    ),
)
