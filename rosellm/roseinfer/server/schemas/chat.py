"""The request of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.answering import MAX_TOP_LOGPROBS, AnswerFields
from rosellm.roseinfer.server.schemas.fields import Body, Empty, NoEffect, Rejected
from rosellm.roseinfer.server.schemas.prediction import Prediction
from rosellm.roseinfer.server.schemas.sampling import INT64
from rosellm.roseinfer.server.schemas.structured import (
    Form,
    JsonSchemaFormat,
    ResponseFormat,
    TextFormat,
)
from rosellm.roseinfer.server.schemas.template import ConversationFields
from rosellm.roseinfer.server.schemas.tools import ToolFields

KEPT_NOWHERE = "A server of one's own keeps no such record."
MAX_METADATA = 16


class PromptCacheOptions(Body):
    """``prompt_cache_options`` as they are by default."""

    mode: Literal["implicit"] = Field(default="implicit", description="Every prefix is cached.")
    ttl: Literal["30m"] = Field(default="30m", description="What OpenAI promises at least.")


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=64)],
        Annotated[str, Field(max_length=512)],
    ],
    Field(max_length=MAX_METADATA),
]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(ConversationFields, ToolFields, AnswerFields):
    """A conversation to answer."""

    model: str = Field(description="Name of the served model, see `GET /v1/models`.")
    max_completion_tokens: int | None = Field(
        default=None, ge=0, lt=INT64, description="The newer name of `max_tokens`."
    )
    logprobs: bool | None = Field(
        default=None, description="Report the log-probability of each token of the answer."
    )
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="And those of so many likeliest ones in its place; only with `logprobs`.",
    )
    reasoning_effort: Effort | None = Field(
        default=None,
        description="What the chat template makes of it: a variable of its own, or whether the"
        " model is to think (all but `none`). For a model without reasoning only `none` and"
        " `medium` are accepted.",
    )
    prediction: Prediction | None = Field(
        default=None,
        description="What the answer may turn out to be, such as a file before an edit. The answer"
        " is the same, and comes sooner the more of it was predicted. May stand beside any other"
        " field; does nothing for an answer that has to match a grammar and tells `logprobs`.",
    )
    echo: bool | None = Field(
        default=None,
        description="Begin the answer with the last message, the assistant's, that it continues;"
        " only with `continue_final_message`.",
    )

    response_format: ResponseFormat | None = Field(
        default=None,
        description="What the answer is: text, a JSON object, or JSON that fits a schema.",
    )

    metadata: NoEffect[Metadata] = Field(default=None, description=KEPT_NOWHERE)
    prompt_cache_key: NoEffect[str] = Field(
        default=None, description="One server has one cache; `cache_salt` divides it."
    )
    prompt_cache_retention: NoEffect[Literal["in_memory", "in-memory", "24h"]] = Field(
        default=None, description="A prefix is kept until its room is needed."
    )
    safety_identifier: NoEffect[Annotated[str, Field(max_length=64)]] = Field(
        default=None, description="Nobody watches."
    )
    service_tier: NoEffect[Literal["auto", "default", "flex", "scale", "priority", "fast"]] = Field(
        default=None, description="There is one tier; `priority` orders requests."
    )
    store: NoEffect[bool] = Field(default=None, description=KEPT_NOWHERE)
    user: NoEffect[str] = Field(default=None, description=KEPT_NOWHERE)

    audio: Rejected[None] = Field(default=None, description="There is no audio.")
    function_call: Rejected[Literal["none"]] = Field(
        default=None, description="Deprecated by OpenAI: `tool_choice` is its successor."
    )
    functions: Rejected[Empty] = Field(
        default=None, description="Deprecated by OpenAI: `tools` are their successor."
    )
    modalities: Rejected[Annotated[list[Literal["text"]], Field(min_length=1)]] = Field(
        default=None, description="Answers are text."
    )
    moderation: Rejected[None] = Field(default=None, description="There is no moderation model.")
    prompt_cache_options: Rejected[PromptCacheOptions] = Field(
        default=None, description="Every prefix is cached, without marks of where it ends."
    )
    verbosity: Rejected[Literal["medium"]] = Field(
        default=None, description="No model here is trained for it."
    )
    web_search_options: Rejected[None] = Field(
        default=None, description="The server searches nowhere."
    )

    @field_validator("max_completion_tokens")
    @classmethod
    def _not_both(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit is not None and info.data.get("max_tokens") is not None:
            raise PydanticCustomError("both", "must not stand beside max_tokens, its older name")
        return limit

    @field_validator("response_format")
    @classmethod
    def _one_form(cls, form: Any, info: ValidationInfo) -> Any:
        free = form is None or isinstance(form, TextFormat)
        if not free and info.data.get("structured_outputs"):
            raise PydanticCustomError("both", "must not stand beside structured_outputs")
        return form

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and not info.data.get("logprobs"):
            raise PydanticCustomError("needs_logprobs", "is only allowed when logprobs is true")
        return count

    @field_validator("echo")
    @classmethod
    def _only_of_what_is_continued(cls, echo: bool | None, info: ValidationInfo) -> bool | None:
        if echo and not info.data.get("continue_final_message"):
            raise PydanticCustomError(
                "needs_continued", "is only allowed when continue_final_message is true"
            )
        return echo

    @property
    def answer_logprobs(self) -> int | None:
        """How many likeliest tokens to report in each place of the answer; None for no report."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> int | None:
        """The longest answer that is asked for, by whichever of its two names."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def least_answer(self) -> int:
        """How many tokens must fit behind the prompt."""
        return self.room(self.limit, default=1)

    @property
    def form(self) -> Form | None:
        """What the answer must look like, if anything is asked of it."""
        if self.response_format is None or isinstance(self.response_format, TextFormat):
            return super().form
        schema = isinstance(self.response_format, JsonSchemaFormat)
        param = "response_format.json_schema.schema" if schema else "response_format"
        return self.response_format.source, param
