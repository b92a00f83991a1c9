"""The request of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import NoEffect, NotBuilt
from rosellm.roseinfer.server.schemas.prompt import TokenIds, one_by_one, prompt_tag
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from rosellm.roseinfer.server.schemas.scoring import ScoringFields

MAX_LOGPROBS = 5

Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Field(min_length=1), Tag("<id lists>")],
    Discriminator(prompt_tag),
]


class CompletionRequest(SamplingFields, ScoringFields):
    """One or several prompts to continue."""

    model: str
    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    user: NoEffect[str] = None

    best_of: NotBuilt[Literal[1]] = None
    suffix: NotBuilt[None] = None

    @field_validator("best_of")
    @classmethod
    def _not_below_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of < (info.data.get("n") or 1):
            raise PydanticCustomError("below_n", "must be at least n")
        return best_of

    @property
    def prompts(self) -> list[str | list[int]]:
        return one_by_one(self.prompt)

    @property
    def scored(self) -> int | None:
        """How many likeliest tokens to report in each place of the prompt; None for no report."""
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in asked if count is not None), default=None)
