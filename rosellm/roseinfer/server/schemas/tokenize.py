"""The requests of ``POST /tokenize`` and ``POST /detokenize``, in vLLM's shapes."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import MOST_OBJECTS, Body
from rosellm.roseinfer.server.schemas.messages import Messages

T = TypeVar("T")


class TokenizeRequest(Body):
    """A text or a conversation, just as a completion or a chat would read it."""

    model: str | None = Field(default=None, description="Checked, where it is given.")
    prompt: str | None = Field(default=None, description="A text, as a completion reads it.")
    messages: Messages | None = Field(
        default=None, description="A conversation, as a chat reads it; in place of `prompt`."
    )
    add_generation_prompt: bool | None = Field(
        default=None, description="End with the start of the assistant's answer; true by default."
    )
    tools: list[dict[str, Any]] | None = Field(
        default=None,
        max_length=MOST_OBJECTS,
        description="What the chat template is told of tools.",
    )
    add_special_tokens: bool | None = Field(
        default=None,
        description="Add the tokenizer's own; by default to a text, and to a conversation whose"
        " template is not the model's.",
    )
    return_token_strs: bool | None = Field(default=None, description="Each token as text too.")

    @field_validator("messages")
    @classmethod
    def _not_both(cls, messages: T, info: ValidationInfo) -> T:
        if messages is not None and info.data.get("prompt") is not None:
            raise PydanticCustomError("both", "must not stand beside prompt")
        return messages

    @field_validator("add_generation_prompt", "tools")
    @classmethod
    def _only_with_messages(cls, value: T, info: ValidationInfo) -> T:
        if value is not None and info.data.get("messages") is None:
            raise PydanticCustomError("needs_messages", "is only allowed with messages")
        return value


class DetokenizeRequest(Body):
    """Token ids, to be read as text."""

    model: str | None = Field(default=None, description="Checked, where it is given.")
    tokens: list[int] = Field(
        fail_fast=True, description="Token ids, special ones shown by their names."
    )
