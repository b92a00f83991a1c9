"""The request of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import NoEffect, NotBuilt
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from rosellm.roseinfer.server.schemas.streaming import StreamFields


def _prompt_tag(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return "<text>"
    first = prompt[0] if prompt else ""
    return {int: "<ids>", list: "<id lists>"}.get(type(first), "<texts>")


TokenIds = Annotated[list[int], Field(min_length=1)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Field(min_length=1), Tag("<id lists>")],
    Discriminator(_prompt_tag),
]


class CompletionRequest(SamplingFields, StreamFields):
    """One or several prompts to continue."""

    model: str
    prompt: Prompt
    user: NoEffect[str] = None

    best_of: NotBuilt[Literal[1]] = None
    echo: NotBuilt[Literal[False]] = None
    logprobs: NotBuilt[None] = None
    suffix: NotBuilt[None] = None

    @field_validator("best_of")
    @classmethod
    def _not_below_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of < (info.data.get("n") or 1):
            raise PydanticCustomError("below_n", "must be at least n")
        return best_of

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
