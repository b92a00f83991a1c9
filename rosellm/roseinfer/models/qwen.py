"""Qwen 2 and 2.5 (arXiv:2407.10671, arXiv:2412.15115), and Qwen 3 (arXiv:2505.09388).

The second generation is Llama with biases on q, k and v; the third has norms over each
head of q and k instead. In both the later layers may see a window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.layer_types import read_window, read_windows
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

_DEFAULTS = {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}


def read_qwen2_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, **values})
    return replace(_read_base(config), attention_bias=True)


def read_qwen3_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, "head_dim": 128, **values})
    bias = config.flag("attention_bias", False)
    return replace(_read_base(config), attention_bias=bias, attention_out_bias=bias, qk_norm="head")


def _read_base(config: ConfigReader) -> ModelSpec:
    spec = read_base(config)
    window = read_window(config) if config.flag("use_sliding_window", False) else None
    first = config.integer("max_window_layers")
    windows = read_windows(config, spec.num_layers, window, lambda layer: layer >= first)
    return replace(spec, windows=windows)


QWEN2 = replace(LLAMA, read_config=read_qwen2_config)

QWEN3 = replace(
    LLAMA,
    read_config=read_qwen3_config,
    weights=replace(
        LLAMA.weights,
        names={
            **LLAMA.weights.names,
            "layers.{i}.self_attn.q_norm.weight": "blocks.{i}.attention.q_norm.weight",
            "layers.{i}.self_attn.k_norm.weight": "blocks.{i}.attention.k_norm.weight",
        },
    ),
)
