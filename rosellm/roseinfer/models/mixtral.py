"""Mixtral (arXiv:2401.04088): Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.layer_types import read_window
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ExpertSpec, ModelSpec

_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, **values})
    spec = read_base(config)
    experts = ExpertSpec(
        count=config.integer("num_local_experts"),
        active=config.integer("num_experts_per_tok"),
        width=spec.intermediate_size,
        normalise=True,
        layers=frozenset(range(spec.num_layers)),
    )
    return replace(spec, windows=(read_window(config),) * spec.num_layers, experts=experts)


_THEIRS = "layers.{i}.block_sparse_moe."
_OURS = "blocks.{i}.mlp."

MIXTRAL = replace(
    LLAMA,
    read_config=read_config,
    weights=replace(
        LLAMA.weights,
        names={
            **LLAMA.weights.names,
            _THEIRS + "gate.weight": _OURS + "router.weight",
            _THEIRS + "experts.{e}.w1.weight": _OURS + "experts.{e}.up.weight:gate",
            _THEIRS + "experts.{e}.w3.weight": _OURS + "experts.{e}.up.weight:up",
            _THEIRS + "experts.{e}.w2.weight": _OURS + "experts.{e}.down.weight",
        },
    ),
)
