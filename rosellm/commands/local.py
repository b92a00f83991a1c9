"""A model in this process's own engine, through the library."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rosellm.commands.answers import Message
from rosellm.roseinfer.config import CacheConfig, ModelConfig
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import LLM, SamplingParams

CONFIGS = (ModelConfig, CacheConfig)


def add_model(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add MODEL itself."""
    help = next(each.metadata["help"] for each in fields(ModelConfig) if each.name == "model")
    more: dict[str, Any] = {"nargs": "?", "default": argparse.SUPPRESS} if optional else {}
    command.add_argument("model", metavar="MODEL", help=help, **more)


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags that say how a model is loaded and run."""
    for config in CONFIGS:
        flags.add_group(command, config)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parsed values that are about a local model."""
    names = [field.name for config in CONFIGS for field in fields(config)]
    return {name: values[name] for name in names if name in values}


@contextmanager
def load(values: Mapping[str, Any]) -> Iterator[LLM]:
    """The model that the command line names, for as long as it is used.

    Raises:
        RosellmError: it cannot be loaded.
    """
    if "model" not in values:
        raise ConfigError("which model? pass a folder or a checkpoint")
    for config in CONFIGS:
        flags.build(config, values)  # its complaints name the flag
    from rosellm.roseinfer.llm import LLM

    with closing(LLM(**given(values))) as llm:
        yield llm


class Local:
    """A loaded model as the answerer of a conversation."""

    def __init__(self, llm: LLM, params: SamplingParams) -> None:
        self.finish: str | None = None
        self._llm = llm
        self._params = params

    @property
    def about(self) -> str:
        ready = self._llm.service.ready
        where = f"{ready.dtype} on {ready.device}"
        return f"{self._llm.service.name}: {where}, context of {ready.max_model_len} tokens"

    def stream(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        """The answer to the last message; closing it aborts it."""
        self.finish = None
        with closing(self._llm.stream(list(messages), self._params)) as stream:
            yield from stream
            if stream.completion is not None:
                self.finish = stream.completion.finish_reason
