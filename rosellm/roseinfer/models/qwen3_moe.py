"""Qwen 3 with mixtures of many small experts (arXiv:2505.09388); the layers that the config
leaves dense keep their MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.layer_types import read_window
from rosellm.roseinfer.models.llama import read_base
from rosellm.roseinfer.models.qwen import QWEN3
from rosellm.roseinfer.models.spec import ConfigReader, ExpertSpec, ModelSpec

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, **values})
    spec = read_base(config)
    bias = config.flag("attention_bias", False)
    window = read_window(config) if config.flag("use_sliding_window", False) else None
    return replace(
        spec,
        attention_bias=bias,
        attention_out_bias=bias,
        qk_norm="head",
        windows=(window,) * spec.num_layers,
        experts=_read_experts(config, spec.num_layers),
    )


def _read_experts(config: ConfigReader, num_layers: int) -> ExpertSpec | None:
    layers = _sparse_layers(config, num_layers)
    # transformers 5 writes the count under the name that Mixtral gave it.
    count = config.integer("num_experts", config.integer("num_local_experts", 128))
    if count == 0 or not layers:
        return None
    return ExpertSpec(
        count=count,
        active=config.integer("num_experts_per_tok"),
        width=config.integer("moe_intermediate_size"),
        normalise=config.flag("norm_topk_prob", False),
        layers=layers,
    )


def _sparse_layers(config: ConfigReader, num_layers: int) -> frozenset[int]:
    """Every n-th layer, but for those named as dense."""
    every = config.integer("decoder_sparse_step", 1)
    if every < 1:
        raise config.unexpected("decoder_sparse_step", "an integer from 1 on")
    dense = config.sequence("mlp_only_layers") if config.has("mlp_only_layers") else ()
    return frozenset(i for i in range(num_layers) if i not in dense and (i + 1) % every == 0)


_THEIRS = "layers.{i}.mlp."
_OURS = "blocks.{i}.mlp."

QWEN3_MOE = replace(
    QWEN3,
    read_config=read_config,
    weights=replace(
        QWEN3.weights,
        names={
            **QWEN3.weights.names,
            _THEIRS + "gate.weight": _OURS + "router.weight",
            _THEIRS + "experts.{e}.gate_proj.weight": _OURS + "experts.{e}.up.weight:gate",
            _THEIRS + "experts.{e}.up_proj.weight": _OURS + "experts.{e}.up.weight:up",
            _THEIRS + "experts.{e}.down_proj.weight": _OURS + "experts.{e}.down.weight",
        },
    ),
)
