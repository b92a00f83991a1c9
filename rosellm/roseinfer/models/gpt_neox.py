"""GPT-NeoX (arXiv:2204.06745) and Pythia (arXiv:2304.01373): attention and MLP side by side,
rope on part of each head, q, k and v of a head next to each other in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.models.activations import PLAIN
from rosellm.roseinfer.models.decoder import Decoder, PreNormBlock
from rosellm.roseinfer.models.rope_config import read_lengths, read_rope
from rosellm.roseinfer.models.spec import Architecture, ConfigReader, ModelSpec, WeightMap


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader(values)
    config.refuse("quantization_config", harmless={})
    hidden_size = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    if heads < 1 or hidden_size % heads:
        raise ModelError(
            f"the model's config has hidden_size = {hidden_size}, "
            f"not a multiple of num_attention_heads = {heads}"
        )
    head_dim = hidden_size // heads
    theta, fraction = config.positive("rotary_emb_base", 1e4), config.positive("rotary_pct", 0.25)
    rope = read_rope(config, head_dim, theta=theta, fraction=fraction)
    max_positions, stretched_positions = read_lengths(config, rope)
    bias = config.flag("attention_bias", True)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        max_positions=max_positions,
        stretched_positions=stretched_positions,
        norm="layer",
        norm_eps=config.number("layer_norm_eps", 1e-5),
        activation=config.choice("hidden_act", "gelu", PLAIN),
        parallel_residual=config.flag("use_parallel_residual", True),
        rope=rope,
        tied=config.flag("tie_word_embeddings", False),
        attention_bias=bias,
        attention_out_bias=bias,
        mlp_bias=True,
    )


class NeoXBlock(PreNormBlock):
    """x + attention(norm(x)) + mlp(norm(x)), or one after the other."""

    def __init__(self, ops: Ops, spec: ModelSpec, layer: int) -> None:
        super().__init__(ops, spec, layer)
        self._parallel = spec.parallel_residual

    def forward(self, x: Tensor, step: Step) -> Tensor:
        attended = x + self.attention(self.attention_norm(x), step)
        source = x if self._parallel else attended
        return attended + self.mlp(self.mlp_norm(source))  # type: ignore[no-any-return]


_LAYER = "layers.{i}."
_QKV = f"{_LAYER}attention.query_key_value.weight"

GPT_NEOX = Architecture(
    read_config=read_config,
    skeleton=Decoder,
    block=NeoXBlock,
    weights=WeightMap(
        names={
            "embed_in.weight": "embed.weight",
            f"{_LAYER}input_layernorm.weight": "blocks.{i}.attention_norm.weight",
            _QKV: "blocks.{i}.attention.qkv.weight",
            f"{_LAYER}attention.dense.weight": "blocks.{i}.attention.out.weight",
            f"{_LAYER}post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
            f"{_LAYER}mlp.dense_h_to_4h.weight": "blocks.{i}.mlp.up.weight",
            f"{_LAYER}mlp.dense_4h_to_h.weight": "blocks.{i}.mlp.down.weight",
            "final_layer_norm.weight": "norm.weight",
            "embed_out.weight": "head.weight",
        },
        prefixes=("gpt_neox.",),
        by_head=frozenset({_QKV}),
        ignored=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    ),
)
