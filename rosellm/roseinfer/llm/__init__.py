"""The engine as a Python library, over the same pipeline as the server's. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosellm.roseinfer.llm.library import LLM
    from rosellm.roseinfer.llm.params import SamplingParams
    from rosellm.roseinfer.llm.results import (
        Choice,
        Completion,
        Embedding,
        Score,
        TokenLogprob,
    )
    from rosellm.roseinfer.llm.stream import TextStream

__all__ = [
    "LLM",
    "Choice",
    "Completion",
    "Embedding",
    "SamplingParams",
    "Score",
    "TextStream",
    "TokenLogprob",
]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from rosellm.roseinfer.llm.library import LLM

        return LLM
    if name == "SamplingParams":
        from rosellm.roseinfer.llm.params import SamplingParams

        return SamplingParams
    if name == "TextStream":
        from rosellm.roseinfer.llm.stream import TextStream

        return TextStream
    if name in __all__:
        from rosellm.roseinfer.llm import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
