"""Phi-3, 3.5 and 4 (arXiv:2404.14219): Llama with fused projections in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.layer_types import read_window
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

_DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}
_OLDER_NAMES = {"su": "longrope", "yarn": "longrope"}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, **values})
    fraction = config.positive("partial_rotary_factor", 1.0)
    spec = read_base(config, fraction=fraction, aliases=_OLDER_NAMES)
    return replace(spec, windows=(read_window(config),) * spec.num_layers)


_SPLIT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")

PHI3 = replace(
    LLAMA,
    read_config=read_config,
    weights=replace(
        LLAMA.weights,
        names={
            **{
                source: target
                for source, target in LLAMA.weights.names.items()
                if not any(part in source for part in _SPLIT)
            },
            "layers.{i}.self_attn.qkv_proj.weight": "blocks.{i}.attention.qkv.weight",
            "layers.{i}.mlp.gate_up_proj.weight": "blocks.{i}.mlp.up.weight",
        },
    ),
)
