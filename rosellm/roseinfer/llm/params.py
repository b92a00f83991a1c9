"""How answers are made: the HTTP API's own fields, as an object."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from rosellm.roseinfer.server.schemas.answering import MAX_TOP_LOGPROBS
from rosellm.roseinfer.server.schemas.sampling import SamplingFields
from rosellm.roseinfer.server.schemas.structured import Form, StructuredOutputs, form_of
from rosellm.roseinfer.server.validation import Known, request_error


class SamplingParams(SamplingFields):
    """Names, ranges and defaults are those of the HTTP API.

    What is left out, or None, is the ``LLM``'s own setting of that name, or else what the
    model's ``generation_config.json`` says, or else OpenAI's default. ``max_tokens`` is 16 by
    default in ``generate`` and as many as the context holds in ``chat``; with 0, only the
    prompt is computed (for its ``prompt_logprobs``). ``structured_outputs`` takes a dict, as the
    HTTP API does: ``{"json": schema}``.

    >>> SamplingParams(top_p=2)
    Traceback (most recent call last):
    rosellm.roseinfer.errors.RequestError: top_p: must be less than or equal to 1, not 2

    Raises:
        RequestError: a name or a value that is none; one line that says which.
    """

    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Report each token's log-probability and those of so many likeliest ones.",
    )
    prompt_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP_LOGPROBS, description="The same for the prompt's tokens."
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None,
        description="What the answer has to look like: one of json, regex, choice and grammar.",
    )

    @property
    def form(self) -> Form | None:
        """What the answer has to look like, and the field that says so."""
        return None if self.structured_outputs is None else form_of(self.structured_outputs)

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, given: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(given)
        except ValidationError as error:
            raise request_error(error.errors(), given, Known.of(cls)) from None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _ids_are_numbers(cls, bias: Any) -> Any:
        """JSON has strings as keys only; here a token id may be a number."""
        return {str(token): value for token, value in bias.items()} if bias else bias
