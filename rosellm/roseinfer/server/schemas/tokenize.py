"""The requests of ``POST /tokenize`` and ``POST /detokenize``, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.chat import Message
from rosellm.roseinfer.server.schemas.fields import Body

T = TypeVar("T")


class TokenizeRequest(Body):
    """A text or a conversation, just as a completion or a chat would read it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_generation_prompt: bool | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

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

    model: str | None = None
    tokens: list[int]
