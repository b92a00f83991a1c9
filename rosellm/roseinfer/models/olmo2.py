"""OLMo 2 (arXiv:2501.00656): Llama with norms after attention and MLP, and of q and k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.models.decoder import PreNormBlock
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({"rms_norm_eps": 1e-5, **values})
    bias = config.flag("attention_bias", False)
    return replace(read_base(config), attention_bias=bias, attention_out_bias=bias, qk_norm="all")


class PostNormBlock(PreNormBlock):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention_norm(self.attention(x, step))
        return x + self.mlp_norm(self.mlp(x))  # type: ignore[no-any-return]


OLMO2 = replace(
    LLAMA,
    read_config=read_config,
    block=PostNormBlock,
    weights=replace(
        LLAMA.weights,
        names={
            **{
                source: target
                for source, target in LLAMA.weights.names.items()
                if "layernorm" not in source
            },
            "layers.{i}.post_attention_layernorm.weight": "blocks.{i}.attention_norm.weight",
            "layers.{i}.post_feedforward_layernorm.weight": "blocks.{i}.mlp_norm.weight",
            "layers.{i}.self_attn.q_norm.weight": "blocks.{i}.attention.q_norm.weight",
            "layers.{i}.self_attn.k_norm.weight": "blocks.{i}.attention.k_norm.weight",
        },
    ),
)
