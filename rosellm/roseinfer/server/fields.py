"""The settings by name, and what fits them, wherever it was said: flag, file, variable, keyword."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator
from dataclasses import Field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from rosellm.roseinfer.config import (
    CacheConfig,
    ModelConfig,
    SamplingDefaults,
    SchedulerConfig,
    ServerConfig,
)
from rosellm.roseinfer.errors import shown

CONFIGS = (ModelConfig, CacheConfig, SchedulerConfig, SamplingDefaults, ServerConfig)
KINDS = {bool: "yes or no", int: "an integer", float: "a number", str: "a text"}
WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
MOST_INTEGER = 2**63 - 1  # as the messages to the engine can say it


def fields_of(config: type) -> dict[str, Field[Any]]:
    """The fields of one config dataclass by name."""
    return {item.name: item for item in fields(config)}


@cache
def hints() -> dict[str, Any]:
    """The type of every setting; no two configs share a name."""
    return {name: hint for config in CONFIGS for name, hint in get_type_hints(config).items()}


@cache
def _metadata() -> dict[str, Any]:
    return {name: item.metadata for config in CONFIGS for name, item in fields_of(config).items()}


def kind_of(hint: Any) -> Any:
    """The type without None."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return next(arg for arg in get_args(hint) if arg is not types.NoneType)


def is_list(name: str) -> bool:
    """Whether the setting has several values."""
    return get_origin(kind_of(hints()[name])) is tuple


def fitting(name: str, value: Any) -> Any:
    """The value as the setting holds it.

    Raises:
        ValueError: what it must be.
    """
    try:
        fit = msgspec.convert(value, hints()[name])
    except (msgspec.ValidationError, OverflowError):
        expected = _expected(kind_of(hints()[name]))
        raise ValueError(f"must be {expected}, not {shown(repr(value))}") from None
    for complaint in unfit(name, value):
        raise ValueError(complaint)
    return fit


def from_text(name: str, text: str) -> Any:
    """``fitting`` for what can only be written as text.

    Raises:
        ValueError: what it must be.
    """
    return fitting(name, _read(kind_of(hints()[name]), text))


def _read(kind: Any, text: str) -> Any:
    """A value of that type, or the text itself where it is none."""
    if get_origin(kind) is tuple:
        return parts(text)
    if kind is bool:
        return WORDS.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def parts(text: str) -> list[str]:
    """The items of a list that commas divide."""
    return [part.strip() for part in text.split(",") if part.strip()]


def unfit(name: str, value: Any) -> Iterator[str]:
    """Complaints about a value of the right type."""
    about = _metadata()[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = about["least"], min(about["most"], MOST_INTEGER)
        if not (least <= value <= most and math.isfinite(value)):
            above = "" if math.isinf(about["most"]) and not value > most else f" and at most {most}"
            yield f"must be at least {least}{above}, not {shown(str(value))}"
    elif about["form"] and isinstance(value, list | tuple):
        pattern, words = about["form"]
        for part in value:
            if not re.fullmatch(pattern, part):
                yield f"must be {words}, not {shown(repr(part))}"


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return "a list of texts" if get_origin(kind) is tuple else KINDS[kind]
