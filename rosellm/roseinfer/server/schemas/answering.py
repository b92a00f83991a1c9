"""Request fields of both completion routes that say what an answer carries; names are vLLM's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import TIMEOUT, NoEffect, Timeout
from rosellm.roseinfer.server.schemas.sampling import INT64, SamplingFields
from rosellm.roseinfer.server.schemas.streaming import StreamFields
from rosellm.roseinfer.server.schemas.structured import Form, StructuredOutputs, form_of

MAX_TOP_LOGPROBS = 20  # OpenAI's limit for answers, and vLLM's default one for prompts
RequestId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]


class AnswerFields(SamplingFields, StreamFields):
    """What chats and completions have in common beside sampling."""

    prompt_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="For every prompt token but the first, its log-probability and those of so"
        " many likeliest tokens in its place; only without `stream`.",
    )
    return_token_ids: bool | None = Field(
        default=None,
        description="The prompt's token ids (`prompt_token_ids`) and each choice's (`token_ids`).",
    )
    return_timings: bool | None = Field(
        default=None,
        description="`timings`, in the answer or the last chunk of its stream: the seconds that the"
        " request has spent in each phase, which add up to `total_s`, and its tokens.",
    )
    truncate_prompt_tokens: int | None = Field(
        default=None,
        ge=-1,
        lt=INT64,
        description="Keep only the last so many tokens of the prompt; -1 keeps as many as leave"
        " room for the answer.",
    )
    request_id: RequestId | None = Field(
        default=None, description="Ends the answer's `id`, in place of a random one."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None,
        description="What the answer must match: a JSON Schema, a regular expression, one of some"
        " texts, or a grammar.",
    )
    timeout: Timeout | None = Field(default=None, description=TIMEOUT)
    spaces_between_special_tokens: NoEffect[bool] = Field(
        default=None, description="Tokens are joined as they are, never with spaces between them."
    )

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_streamed(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and info.data.get("stream"):
            raise PydanticCustomError("not_streamed", "is only allowed when stream is false")
        return count

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _not_zero(cls, count: int | None) -> int | None:
        if count == 0:
            raise PydanticCustomError("no_tokens", "must be -1 or at least 1")
        return count

    @property
    def form(self) -> Form | None:
        """What the answer must look like, if anything is asked of it."""
        return None if self.structured_outputs is None else form_of(self.structured_outputs)

    def room(self, max_tokens: int | None, *, default: int) -> int:
        """How many tokens must fit behind the prompt; a prompt that is cut leaves all of them."""
        if self.truncate_prompt_tokens == -1:
            return default if max_tokens is None else max_tokens
        return 0 if max_tokens == 0 else 1
