"""Request fields that say how a conversation becomes a prompt; names are vLLM's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.server.schemas.messages import Messages

OWN_VARIABLES = ("add_generation_prompt", "continue_final_message", "messages", "tools")
"""What a template gets from the request's other fields."""


@dataclass(frozen=True)
class Rendering:
    """How a conversation becomes a prompt.

    Attributes:
        add_generation_prompt: end with the start of the assistant's answer.
        continue_final_message: end where the last message's text does, so that the answer goes
            on from it.
        tools: OpenAI's tool objects, in the order given.
        variables: more of them for the template, such as ``enable_thinking``.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


class ConversationFields(Body):
    """A conversation and what its chat template is told."""

    messages: Messages = Field(description="The conversation, oldest message first.")
    add_generation_prompt: bool | None = Field(
        default=None,
        description="End the prompt with the start of the assistant's answer; true by default.",
    )
    continue_final_message: bool | None = Field(
        default=None,
        description="Leave the last message, the assistant's, open: the answer goes on from it.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description="More variables for the chat template; it ignores those that it does not know.",
    )

    @field_validator("continue_final_message")
    @classmethod
    def _has_something_to_continue(cls, asked: bool | None, info: ValidationInfo) -> bool | None:
        if not asked:
            return asked
        if info.data.get("add_generation_prompt"):
            raise PydanticCustomError(
                "not_with_prompt", "must not stand beside add_generation_prompt: true"
            )
        messages = info.data.get("messages")
        if messages and (messages[-1].role != "assistant" or not messages[-1].text):
            raise PydanticCustomError(
                "not_continued", "needs a last message of the assistant's, with some text"
            )
        return asked

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_its_own(cls, variables: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in OWN_VARIABLES:
            if variables is not None and name in variables:
                raise PydanticCustomError(
                    "own_variable",
                    "must not hold {name}, which is a field of the request",
                    {"name": name},
                )
        return variables

    @property
    def rendering(self) -> Rendering:
        """How the conversation is to be rendered."""
        continues = bool(self.continue_final_message)
        return Rendering(
            add_generation_prompt=not continues and self.add_generation_prompt is not False,
            continue_final_message=continues,
            variables=self.chat_template_kwargs or {},
        )
