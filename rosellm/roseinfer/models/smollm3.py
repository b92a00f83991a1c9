"""SmolLM3: Llama where every fourth layer, or those listed, has no rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models import llama
from rosellm.roseinfer.models.layer_types import read_window, read_windows
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

_DEFAULTS = {
    "tie_word_embeddings": True,
    "rope_theta": 2e6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "no_rope_layer_interval": 4,
}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    filled = {**_DEFAULTS, **values}
    config, spec = ConfigReader(filled), llama.read_config(filled)
    rotates = _read_rotating(config, spec.num_layers)
    slides = config.flag("use_sliding_window", False)
    windows = read_windows(
        config, spec.num_layers, read_window(config), lambda layer: slides and not rotates[layer]
    )
    return replace(
        spec, ropes=tuple(spec.rope if own else None for own in rotates), windows=windows
    )


def _read_rotating(config: ConfigReader, num_layers: int) -> list[bool]:
    """Which layers have a rotary embedding; ``no_rope_layers`` lists these, as 1."""
    if config.has("no_rope_layers"):
        listed = config.sequence("no_rope_layers")
        if len(listed) < num_layers or any(own not in (0, 1) for own in listed):
            raise config.unexpected("no_rope_layers", f"{num_layers} times 0 or 1")
        return [bool(own) for own in listed[:num_layers]]
    interval = config.integer("no_rope_layer_interval")
    if interval < 1:
        raise config.unexpected("no_rope_layer_interval", "an integer from 1 on")
    return [(layer + 1) % interval != 0 for layer in range(num_layers)]


SMOLLM3 = replace(llama.LLAMA, read_config=read_config)
