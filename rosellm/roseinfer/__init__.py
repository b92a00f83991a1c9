"""The inference engine, its OpenAI-compatible server and its library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosellm.roseinfer.inference_engine import InferenceEngine

__all__ = ["InferenceEngine"]


def __getattr__(name: str) -> Any:
    if name == "InferenceEngine":
        from rosellm.roseinfer.inference_engine import InferenceEngine

        return InferenceEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
