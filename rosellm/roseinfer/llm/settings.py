"""Keyword arguments to the configuration that they mean, as flags are for the command."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from rosellm.roseinfer.config import (
    UNBOUNDED,
    CacheConfig,
    EngineConfig,
    ModelConfig,
    SamplingDefaults,
    SchedulerConfig,
    ServerConfig,
)
from rosellm.roseinfer.demo import model_or_demo
from rosellm.roseinfer.errors import ConfigError, did_you_mean
from rosellm.roseinfer.server.fields import fields_of, fitting
from rosellm.roseinfer.server.flags import Options, check_model

Config = TypeVar("Config")

_PARTS = (ModelConfig, CacheConfig, SchedulerConfig, SamplingDefaults)
NAMES = frozenset(field.name for part in _PARTS for field in fields(part))


def read_settings(given: Mapping[str, Any]) -> Options:
    """The configuration that fields of ``config.py``, given by name, amount to.

    Without a model it is the demo model.

    Raises:
        ConfigError: a name that is none, or a value of the wrong type or out of its range.
    """
    for name in given:
        if name not in NAMES:
            raise ConfigError(f"unknown setting {name!r}{did_you_mean(name, NAMES)}")
    values = {name: _plain(value) for name, value in given.items()}
    values["model"] = model_or_demo(values.get("model"), values.get("tokenizer"))
    values.setdefault("max_queue_tokens", UNBOUNDED)  # callers wait their turn, see batch.py
    engine = EngineConfig(
        model=_build(ModelConfig, values),
        cache=_build(CacheConfig, values),
        scheduler=_build(SchedulerConfig, values),
    )
    check_model(engine.model, tokenizer="tokenizer=")
    return Options(engine, _build(SamplingDefaults, values), ServerConfig())


def _build(part: type[Config], values: Mapping[str, Any]) -> Config:
    own = {name: value for name, value in values.items() if name in fields_of(part)}
    return part(**{name: _fitting(name, value) for name, value in own.items()})


def _fitting(name: str, value: Any) -> Any:
    try:
        return fitting(name, value)
    except ValueError as error:
        raise ConfigError(f"{name} {error}") from None


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
