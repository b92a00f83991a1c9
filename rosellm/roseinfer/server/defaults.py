"""Sampling defaults: request > server flags > generation_config.json > OpenAI's.

The one place that knows this order. A layer that is silent about a value leaves
it to the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from rosellm.roseinfer.config import SamplingDefaults
from rosellm.roseinfer.errors import ModelError, shown

MAX_TOKENS_COMPLETION = 16
MAX_TOKENS_GENERATE = 64

T = TypeVar("T")


class GenerationConfig(msgspec.Struct):
    """What is read of a model's ``generation_config.json``; other keys are not ours."""

    do_sample: bool | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    eos_token_id: int | list[int] | None = None


class ModelFile(msgspec.Struct):
    """What is read of a model's ``config.json``."""

    eos_token_id: int | list[int] | None = None


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it says nothing.

    Attributes:
        flags: the server's own defaults.
        model: the model's.
        eos_ids: tokens that end an answer.
    """

    flags: SamplingDefaults = field(default_factory=SamplingDefaults)
    model: GenerationConfig = field(default_factory=GenerationConfig)
    eos_ids: tuple[int, ...] = ()

    def temperature(self, asked: float | None, do_sample: bool | None = None) -> float:
        """The temperature to sample at.

        In each layer ``do_sample=False`` means 0; a layer that says ``do_sample=True``
        overrules a lower one's False.
        """
        sampling = False
        for sample, temperature in (
            (do_sample, asked),
            (self.flags.do_sample, self.flags.temperature),
            (self.model.do_sample, self.model.temperature),
        ):
            if sample is False and not sampling:
                return 0.0
            if temperature is not None:
                return temperature
            sampling = sampling or sample is True
        return 1.0

    def top_k(self, asked: int | None) -> int:
        return _first(asked, self.flags.top_k, self.model.top_k, 0)

    def top_p(self, asked: float | None) -> float:
        return _first(asked, self.flags.top_p, self.model.top_p, 1.0)

    def min_p(self, asked: float | None) -> float:
        return _first(asked, self.model.min_p, 0.0)

    def repetition_penalty(self, asked: float | None) -> float:
        return _first(asked, self.model.repetition_penalty, 1.0)

    def eos(self, ignore: bool | None) -> tuple[int, ...]:
        """The end-of-sequence tokens that end this answer."""
        stop_on_eos = _first(None if ignore is None else not ignore, self.flags.stop_on_eos, True)
        return self.eos_ids if stop_on_eos else ()


def load_defaults(
    model: str | Path, flags: SamplingDefaults, tokenizer_eos: Iterable[int]
) -> Defaults:
    """Read the defaults that come with a model folder; a checkpoint file has none.

    Raises:
        ModelError: a file that is not what it should be; names the file and the key.
    """
    generation = _read(Path(model) / "generation_config.json", GenerationConfig)
    declared = generation.eos_token_id
    if declared is None:
        declared = _read(Path(model) / "config.json", ModelFile).eos_token_id
    eos = {*_as_list(declared), *tokenizer_eos}
    return Defaults(flags, generation, tuple(sorted(eos)))


def _read(path: Path, kind: type[T]) -> T:
    if not path.is_file():
        return kind()
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise ModelError(f"{path}: {shown(str(error))}") from None


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [ids] if isinstance(ids, int) else ids or []


def _first(*values: T | None) -> T:
    """The first value that is not None."""
    return next(value for value in values if value is not None)
