"""rosellm: serve language models from one small, readable engine.

Importing this package stays cheap: nothing here imports torch, and the library itself only when
it is asked for.

>>> from rosellm import LLM, SamplingParams
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import LLM, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("LLM", "SamplingParams"):
        from rosellm.roseinfer import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
