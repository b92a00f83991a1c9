"""Request fields that say which tools an answer may call."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import MOST_OBJECTS, Body

Mode = Literal["none", "auto", "required"]
# OpenAI's documented limits, and the dots of names such as math.factorial, which others allow.
ToolName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: ToolName = Field(description="Letters, digits, underscores, dashes and dots.")
    description: str | None = Field(default=None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON Schema of its arguments, an object; left out, it has none."
    )
    strict: bool | None = Field(
        default=None,
        description="Whether arguments must fit the schema even if nothing forces them.",
    )


class FunctionTool(Body):
    """A tool; functions are the only kind."""

    type: Literal["function"] = Field(description="What the tool is.")
    function: FunctionDefinition = Field(description="The function.")


class FunctionName(Body):
    """One of the functions, by its name."""

    name: str = Field(description="One of `tools`.")


class NamedTool(Body):
    """The tool that has to be called."""

    type: Literal["function"] = Field(description="What the tool is.")
    function: FunctionName = Field(description="Which one.")


class Allowed(Body):
    """Some of the tools."""

    mode: Literal["auto", "required"] = Field(description="Whether one of them has to be called.")
    tools: list[FunctionTool] = Field(
        min_length=1,
        max_length=MOST_OBJECTS,
        description="Those that may be called, by their names; the model is shown all of `tools`.",
    )


class AllowedTools(Body):
    """The tools that may be called."""

    type: Literal["allowed_tools"] = Field(description="That it is about some of the tools.")
    allowed_tools: Allowed = Field(description="Which ones.")


class NoToolChoice(Body):
    """What is none of these: it is refused for its type."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["function", "allowed_tools"]


def choice_tag(choice: Any) -> str:
    """Discriminator of the forms of ``tool_choice``."""
    if isinstance(choice, str):
        return "<mode>"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return f"<{kind}>" if kind in ("function", "allowed_tools") else "<none>"


ToolChoice = Annotated[
    Annotated[Mode, Tag("<mode>")]
    | Annotated[NamedTool, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")]
    | Annotated[NoToolChoice, Tag("<none>")],
    Discriminator(choice_tag),
]


class ToolFields(Body):
    """Tools, and what may be done with them."""

    tools: list[FunctionTool] | None = Field(
        default=None, max_length=MOST_OBJECTS, description="Functions that the answer may call."
    )
    tool_choice: ToolChoice | None = Field(
        default=None,
        description="`none`, `auto` (the default), `required`, one function by its name, or"
        " `allowed_tools`; only with `tools`.",
    )
    parallel_tool_calls: bool | None = Field(
        default=None,
        description="Whether there may be several calls in an answer; true by default, false only"
        " with `tools`.",
    )

    @field_validator("tools")
    @classmethod
    def _each_once(cls, tools: list[FunctionTool] | None) -> list[FunctionTool] | None:
        names = Counter(tool.function.name for tool in tools or ())
        for name, times in names.items():
            if times > 1:
                raise PydanticCustomError("twice", "there are two functions {name}", {"name": name})
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, choice: Any, info: ValidationInfo) -> Any:
        tools = info.data.get("tools")
        if "tools" not in info.data or choice is None or choice == "none":
            return choice
        if not tools:
            raise PydanticCustomError("needs_tools", "is only allowed when tools are given")
        known = {tool.function.name for tool in tools}
        for name in _names(choice):
            if name not in known:
                raise PydanticCustomError(
                    "no_such_tool", "there is no function {name} in tools", {"name": name[:100]}
                )
        return choice

    @field_validator("parallel_tool_calls")
    @classmethod
    def _with_tools(cls, parallel: bool | None, info: ValidationInfo) -> bool | None:
        if parallel is False and "tools" in info.data and not info.data["tools"]:
            raise PydanticCustomError("needs_tools", "is only allowed when tools are given")
        return parallel


def _names(choice: Any) -> list[str]:
    """The functions that a choice speaks of."""
    if isinstance(choice, NamedTool):
        return [choice.function.name]
    if isinstance(choice, AllowedTools):
        return [tool.function.name for tool in choice.allowed_tools.tools]
    return []
