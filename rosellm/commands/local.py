"""A model in this process's own engine, through the library."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rosellm.commands.answers import Message
from rosellm.commands.console import note
from rosellm.roseinfer import demo
from rosellm.roseinfer.config import CacheConfig, ModelConfig
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import LLM, SamplingParams

CONFIGS = (ModelConfig, CacheConfig)


def add_flags(command: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add the flags that say how a model is loaded and run."""
    for config in CONFIGS:
        flags.add_group(command, config, without=without)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parsed values that are about a local model."""
    names = [field.name for config in CONFIGS for field in fields(config)]
    return {name: values[name] for name in names if name in values}


@contextmanager
def load(values: Mapping[str, Any]) -> Iterator[LLM]:
    """The model that the command line names, or the demo model, for as long as it is used.

    Raises:
        RosellmError: it cannot be loaded.
    """
    model = flags.model_config(values)
    flags.build(CacheConfig, values)  # its complaints name the flag
    flags.check_model(model)
    if "model" not in values:
        note(f"{demo.NAME}, {demo.ABOUT}; MODEL names another")
    with closing(_loaded({**given(values), "model": model.model})) as llm:
        yield llm


def _loaded(settings: Mapping[str, Any]) -> LLM:
    from rosellm.roseinfer.llm import LLM

    try:
        return LLM(**settings)
    except KeyboardInterrupt:
        # A thread may be deep in torch, which no orderly end of Python waits for in time.
        os._exit(130)


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
