"""The request of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.answering import AnswerFields
from rosellm.roseinfer.server.schemas.fields import NoEffect
from rosellm.roseinfer.server.schemas.prompt import TokenIds, one_by_one, prompt_tag

MAX_LOGPROBS = 5
MAX_BEST_OF = 20

Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), Tag("<id lists>")],
    Discriminator(prompt_tag),
]


class CompletionRequest(AnswerFields):
    """One or several prompts to continue."""

    model: str = Field(description="Name of the served model, see `GET /v1/models`.")
    prompt: Prompt | None = Field(
        description="A text, several, or token ids; null is the start of a new text."
    )
    echo: bool | None = Field(default=None, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Report each token's log-probability and those of so many likeliest ones;"
        " with `echo`, the prompt's too.",
    )
    best_of: int | None = Field(
        default=None,
        ge=0,
        le=MAX_BEST_OF,
        description="Make so many answers, at least `n`, and give the `n` whose tokens are the"
        " likeliest on average, best first; beyond 1 only without `stream`.",
    )
    suffix: str | None = Field(
        default=None,
        description="What comes behind the answer: only of a model that has tokens for filling a"
        " hole in a text (a 400 otherwise), and without `echo` and `truncate_prompt_tokens`.",
    )

    user: NoEffect[str] = Field(
        default=None, description="A server of one's own keeps no such record."
    )

    @field_validator("best_of")
    @classmethod
    def _not_below_n(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of is not None and best_of < (info.data.get("n") or 1):
            raise PydanticCustomError("below_n", "must be at least n")
        if best_of is not None and best_of > 1 and info.data.get("stream"):
            raise PydanticCustomError("not_streamed", "is only allowed when stream is false")
        return best_of

    @field_validator("suffix")
    @classmethod
    def _around_a_whole_prompt(cls, suffix: str | None, info: ValidationInfo) -> str | None:
        for other in ("echo", "truncate_prompt_tokens"):
            if suffix and info.data.get(other):
                raise PydanticCustomError("both", "must not stand beside {other}", {"other": other})
        return suffix

    @property
    def prompts(self) -> list[str | list[int]]:
        return [""] if self.prompt is None else one_by_one(self.prompt)

    @property
    def chooses(self) -> bool:
        """Whether the answers are to be ranked."""
        return (self.best_of or 1) > 1

    @property
    def made(self) -> int:
        """How many answers to make of each prompt."""
        return self.best_of or self.choices

    @property
    def answer_logprobs(self) -> int | None:
        """How many likeliest tokens are needed in each place of the answer; None for no scores."""
        return 0 if self.logprobs is None and self.chooses else self.logprobs

    @property
    def scored(self) -> int | None:
        """How many likeliest tokens to report in each place of the prompt; None for no report."""
        asked = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in asked if count is not None), default=None)
