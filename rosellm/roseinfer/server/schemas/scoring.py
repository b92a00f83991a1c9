"""Request fields that ask how likely the prompt is."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.streaming import StreamFields

MAX_TOP_LOGPROBS = 20  # OpenAI's limit for answers, and vLLM's default one for prompts


class ScoringFields(StreamFields):
    """``prompt_logprobs``, vLLM's extension."""

    prompt_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="For every prompt token but the first, its log-probability and those of so"
        " many likeliest tokens in its place.",
    )

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_streamed(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and info.data.get("stream"):
            raise PydanticCustomError("not_streamed", "is only allowed when stream is false")
        return count
