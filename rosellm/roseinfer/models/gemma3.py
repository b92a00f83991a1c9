"""The text part of Gemma 3 (arXiv:2503.19786): Gemma 2 with norms of q and k instead of caps,
five layers with a window to one without, and a rotary embedding for each of the two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.models import gemma2
from rosellm.roseinfer.models.rope_config import rope_of
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

_DEFAULTS = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    """Of the text model, or of one that also takes images, whose text part is served."""
    text = ConfigReader(values).section("text_config")
    config = replace(text, values={**_DEFAULTS, **(text.values or values)})
    interval = config.integer("sliding_window_pattern")
    if interval < 1:
        raise config.unexpected("sliding_window_pattern", "an integer from 1 on")
    spec = gemma2.read_gemma(config, slides=lambda layer: (layer + 1) % interval != 0)
    whole, local = _read_ropes(config, spec.head_dim)
    return replace(
        spec,
        rope=None,
        ropes=tuple(whole if window is None else local for window in spec.windows),
        stretched_positions=0,  # Only some layers are scaled; the length given is the final one.
        qk_norm="head",
    )


def _read_ropes(config: ConfigReader, head_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """Of layers that see all, and of those with a window."""
    both, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    whole, local = both.section("full_attention"), both.section("sliding_attention")
    if both.values and not (whole.values or local.values):
        raise config.unexpected("rope_parameters", "full_attention and sliding_attention in it")
    if scaling.values:
        whole = replace(scaling, values={**whole.values, **scaling.values})
    return (
        rope_of(config, whole, head_dim, config.positive("rope_theta")),
        rope_of(config, local, head_dim, config.positive("rope_local_base_freq")),
    )


GEMMA3 = replace(
    gemma2.GEMMA2,
    read_config=read_config,
    weights=replace(
        gemma2.GEMMA2.weights,
        names={
            **gemma2.GEMMA2.weights.names,
            "layers.{i}.self_attn.q_norm.weight": "blocks.{i}.attention.q_norm.weight",
            "layers.{i}.self_attn.k_norm.weight": "blocks.{i}.attention.k_norm.weight",
        },
        prefixes=("model.", "language_model."),
        ignored=(
            *gemma2.GEMMA2.weights.ignored,
            r"vision_tower\..*",
            r"multi_modal_projector\..*",
        ),
    ),
)
