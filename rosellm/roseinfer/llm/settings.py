"""Keyword arguments to the configuration that they mean, as flags are for the command."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

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
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server.flags import Options, check_model, out_of_range

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
            raise ConfigError(f"unknown setting {name!r}{_hint(name)}")
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
    hints = get_type_hints(part)
    own = {name: value for name, value in values.items() if name in hints}
    for name, value in own.items():
        try:
            msgspec.convert(value, hints[name])
        except msgspec.ValidationError as error:
            raise ConfigError(f"{name}={value!r}: {_expected(hints[name], error)}") from None
    for name, complaint in out_of_range(part, own):
        raise ConfigError(f"{name} {complaint}")
    return part(**own)


def _expected(hint: Any, error: msgspec.ValidationError) -> str:
    if get_origin(hint) is Literal:
        return f"must be one of {', '.join(get_args(hint))}"
    return str(error)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(sorted(NAMES))}"
