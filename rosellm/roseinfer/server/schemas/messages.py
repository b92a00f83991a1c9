"""The messages of a conversation: a schema for each role, told apart by ``role``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from rosellm.roseinfer.server.schemas.fields import (
    MOST_OBJECTS,
    Body,
    Empty,
    Rejected,
    one_or_list,
)

NAME = "Who speaks, for chat templates that show it."


class TextPart(Body):
    """A part of a message's content. Text is the only type: any other is rejected by its index."""

    type: Literal["text"] = Field(description="What the part is.")
    text: str = Field(description="Joined with the other parts as it stands, nothing in between.")
    prompt_cache_breakpoint: Rejected[None] = Field(
        default=None, description="Every prefix is cached already; there is nothing to mark."
    )


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MOST_OBJECTS)]
Content = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[Parts, Tag("<list>")],
    Discriminator(one_or_list),
]


def text_of(content: str | list[TextPart] | None) -> str:
    """A content's text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class Turn(Body):
    """What all messages have."""

    @property
    def text(self) -> str:
        return text_of(getattr(self, "content", None))

    @property
    def named(self) -> str | None:
        """The speaker's name, where there is one."""
        name: str | None = getattr(self, "name", None)
        return name


class SystemMessage(Turn):
    """How the assistant is to behave."""

    role: Literal["system"] = Field(description="Who speaks.")
    content: Content = Field(description="A text, or a list of text parts.")
    name: str | None = Field(default=None, description=NAME)


class DeveloperMessage(Turn):
    """The same under its newer name; a template that knows no developer gets a system message."""

    role: Literal["developer"] = Field(description="Who speaks.")
    content: Content = Field(description="A text, or a list of text parts.")
    name: str | None = Field(default=None, description=NAME)


class UserMessage(Turn):
    """What the user says."""

    role: Literal["user"] = Field(description="Who speaks.")
    content: Content = Field(description="A text, or a list of text parts.")
    name: str | None = Field(default=None, description=NAME)


class CalledFunction(Body):
    """What was called, and with what."""

    name: str = Field(description="The function's name.")
    arguments: str = Field(description="JSON of an object.")


class ToolCall(Body):
    """A call that the assistant has made."""

    id: str = Field(description="What the tool's message refers to.")
    type: Literal["function"] = Field(description="What the tool is.")
    function: CalledFunction = Field(description="The call.")


class AssistantMessage(Turn):
    """What the assistant has said; as the last one, what it goes on from."""

    role: Literal["assistant"] = Field(description="Who speaks.")
    tool_calls: list[ToolCall] | None = Field(
        default=None, max_length=MOST_OBJECTS, description="The tools that it has called."
    )
    content: Content | None = Field(
        default=None,
        validate_default=True,
        description="A text, or a list of text parts; required unless there are `tool_calls`.",
    )
    name: str | None = Field(default=None, description=NAME)
    reasoning_content: str | None = Field(
        default=None, description="How it reasoned, for chat templates that show it."
    )
    reasoning: str | None = Field(default=None, description="The same under its newer name.")
    refusal: Rejected[None] = Field(default=None, description="No model here gives one.")
    audio: Rejected[None] = Field(default=None, description="There is no audio.")
    annotations: Rejected[Empty] = Field(
        default=None, description="What OpenAI's answers carry; none are read."
    )
    function_call: Rejected[None] = Field(
        default=None, description="Deprecated by OpenAI: `tool_calls` are its successor."
    )

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and "tool_calls" in info.data and not info.data["tool_calls"]:
            raise PydanticKnownError("missing")
        return content

    @property
    def thought(self) -> str | None:
        """Its reasoning, under whichever name."""
        return self.reasoning if self.reasoning_content is None else self.reasoning_content


class ToolMessage(Turn):
    """What a tool has answered."""

    role: Literal["tool"] = Field(description="Who speaks.")
    content: Content = Field(description="A text, or a list of text parts.")
    tool_call_id: str = Field(description="The call that this answers.")
    name: str | None = Field(default=None, description="The function's name; known from the call.")


Role = Literal["system", "developer", "user", "assistant", "tool"]


class NoMessage(Turn):
    """What has none of the roles: it is refused for that alone."""

    model_config = ConfigDict(extra="ignore")
    role: Role


def role_of(message: Any) -> str:
    """Discriminator by role."""
    role = message.get("role") if isinstance(message, dict) else getattr(message, "role", None)
    return f"<{role}>" if role in get_args(Role) else "<none>"


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[DeveloperMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")]
    | Annotated[NoMessage, Tag("<none>")],
    Discriminator(role_of),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_OBJECTS)]
