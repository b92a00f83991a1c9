"""Mistral (arXiv:2310.06825): Llama whose layers all see a sliding window, if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rosellm.roseinfer.models.layer_types import read_window
from rosellm.roseinfer.models.llama import LLAMA, read_base
from rosellm.roseinfer.models.spec import ConfigReader, ModelSpec

_DEFAULTS = {"sliding_window": 4096, "num_key_value_heads": 8}


def read_config(values: Mapping[str, Any]) -> ModelSpec:
    config = ConfigReader({**_DEFAULTS, **values})
    spec = read_base(config)
    return replace(spec, windows=(read_window(config),) * spec.num_layers)


MISTRAL = replace(LLAMA, read_config=read_config)
