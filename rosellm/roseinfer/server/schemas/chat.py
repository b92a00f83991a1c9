"""The request of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import (
    Body,
    Empty,
    NoEffect,
    NotBuilt,
    PromptCacheOptions,
    TextFormat,
    one_or_list,
)
from rosellm.roseinfer.server.schemas.sampling import INT64, SamplingFields
from rosellm.roseinfer.server.schemas.scoring import MAX_TOP_LOGPROBS, ScoringFields


class TextPart(Body):
    """A piece of a message; text is the only kind so far."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: NotBuilt[None] = None


Content = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[list[TextPart], Field(min_length=1), Tag("<list>")],
    Discriminator(one_or_list),
]


class Message(Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    refusal: NotBuilt[None] = None
    audio: NotBuilt[None] = None
    annotations: NotBuilt[Empty] = None
    tool_calls: NotBuilt[Empty] = None
    function_call: NotBuilt[None] = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(SamplingFields, ScoringFields):
    """A conversation to answer."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=0, lt=INT64)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    metadata: NoEffect[dict[str, str]] = None
    prompt_cache_key: NoEffect[str] = None
    prompt_cache_retention: NoEffect[Literal["in_memory", "in-memory", "24h"]] = None
    safety_identifier: NoEffect[Annotated[str, Field(max_length=64)]] = None
    service_tier: NoEffect[Literal["auto", "default", "flex", "scale", "priority", "fast"]] = None
    store: NoEffect[bool] = None
    user: NoEffect[str] = None

    audio: NotBuilt[None] = None
    function_call: NotBuilt[Literal["none"]] = None
    functions: NotBuilt[Empty] = None
    modalities: NotBuilt[Annotated[list[Literal["text"]], Field(min_length=1)]] = None
    moderation: NotBuilt[None] = None
    parallel_tool_calls: NotBuilt[Literal[True]] = None
    prediction: NotBuilt[None] = None
    prompt_cache_options: NotBuilt[PromptCacheOptions] = None
    reasoning_effort: NotBuilt[Literal["medium"]] = None
    response_format: NotBuilt[TextFormat] = None
    tool_choice: NotBuilt[Literal["none"]] = None
    tools: NotBuilt[Empty] = None
    verbosity: NotBuilt[Literal["medium"]] = None
    web_search_options: NotBuilt[None] = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _not_both(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens") is not None:
            raise PydanticCustomError("both", "must not stand beside max_tokens, its older name")
        return limit

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and not info.data.get("logprobs"):
            raise PydanticCustomError("needs_logprobs", "is only allowed when logprobs is true")
        return count

    @property
    def answer_logprobs(self) -> int | None:
        """How many likeliest tokens to report in each place of the answer; None for no report."""
        return (self.top_logprobs or 0) if self.logprobs else None
