"""Sampling flags, generated from the request schema of the API.

Names, types and ranges are those of ``SamplingFields``; here is only which of them a command
line offers, and the sentence that ``--help`` prints for each.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from rosellm.roseinfer.server.validation import Known, request_error

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import SamplingParams

HELP = {
    "max_tokens": "longest answer, in tokens; default: 16, in a chat to the end of the context",
    "temperature": "0 takes the likeliest token each time; higher is more surprising",
    "top_p": "sample from the likeliest tokens that hold this much probability together",
    "top_k": "sample from this many of the likeliest tokens; 0 considers every token",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "presence_penalty": "lower tokens that the answer has already",
    "frequency_penalty": "lower tokens by how often the answer has them already",
    "repetition_penalty": "divide the scores of tokens that prompt or answer have; 1 is none",
    "seed": "the same seed gives the same answer",
    "stop": "end the answer before this text; may be given several times",
    "stop_token_ids": "end the answer at this token id; may be given several times",
    "ignore_eos": "go on past the end-of-sequence token",
    "min_tokens": "shortest answer, in tokens",
    "n": "number of answers",
}
SCALARS = {int: "N", float: "X", str: "TEXT"}


def add_flags(target: argparse.ArgumentParser, *, without: frozenset[str] = frozenset()) -> None:
    """Add the sampling flags; absent ones leave no trace in the namespace."""
    group = target.add_argument_group("Sampling (default: the model's own, then OpenAI's)")
    for name, sentence in HELP.items():
        if name not in without:
            kind = _kind(SamplingFields.model_fields[name].annotation)
            group.add_argument(_flag(name), dest=name, help=sentence, **kind)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parsed values that are sampling fields.

    Raises:
        ConfigError: a value is out of its range.
    """
    own = {name: values[name] for name in HELP if name in values}
    try:
        SamplingFields.model_validate(own)
    except ValidationError as invalid:
        error = request_error(invalid.errors(), own, Known(HELP))
        name, _, complaint = str(error).partition(": ")
        raise ConfigError(f"{_flag(name.partition('[')[0])} {complaint}") from None
    return own


def params(values: Mapping[str, Any]) -> SamplingParams:
    """The same, as the library takes them."""
    from rosellm.roseinfer.llm import SamplingParams

    return SamplingParams(**given(values))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(hint: Any) -> dict[str, Any]:
    """What argparse has to know about a field of this type."""
    members = _members(hint)
    kind: dict[str, Any] = {"default": argparse.SUPPRESS}
    if bool in members:
        return kind | {"action": "store_true"}
    (scalar,) = members & SCALARS.keys()
    action = "append" if list in members else "store"
    return kind | {"type": scalar, "metavar": SCALARS[scalar], "action": action}


def _members(hint: Any) -> set[type]:
    """The plain types that a hint is made of.

    >>> sorted(kind.__name__ for kind in _members(str | list[Annotated[int, "a size"]] | None))
    ['NoneType', 'int', 'list', 'str']
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return _members(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(_members(each) for each in get_args(hint)))
    if origin is list:
        return {list} | _members(get_args(hint)[0])
    return {hint}
