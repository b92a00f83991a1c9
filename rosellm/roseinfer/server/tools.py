"""What a request wants of tools, in one form whatever fields said it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rosellm.roseinfer.server.schemas.tools import (
    AllowedTools,
    FunctionDefinition,
    NamedTool,
    ToolFields,
)

NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class ToolUse:
    """Tools that an answer may or must call.

    Attributes:
        tools: all of them, which the model is shown.
        names: of those that may be called.
        must: whether there has to be a call.
        most: calls that are wanted at most; None for any number.
    """

    tools: tuple[FunctionDefinition, ...]
    names: frozenset[str]
    must: bool = False
    most: int | None = None

    @property
    def callable(self) -> list[tuple[int, FunctionDefinition]]:
        """Those that may be called, each with its place in ``tools``."""
        return [each for each in enumerate(self.tools) if each[1].name in self.names]

    @property
    def enforced(self) -> bool:
        """Whether calls have to fit their schemas, which only a grammar can promise."""
        return self.must or any(tool.strict for _, tool in self.callable)


def tool_use(asked: ToolFields) -> ToolUse | None:
    """What is asked for; None where nothing may be called."""
    choice = asked.tool_choice or "auto"
    if not asked.tools or choice == "none":
        return None
    tools = tuple(tool.function for tool in asked.tools)
    names = frozenset(tool.name for tool in tools)
    must, most = choice == "required", 1 if asked.parallel_tool_calls is False else None
    if isinstance(choice, NamedTool):
        names, must, most = frozenset({choice.function.name}), True, 1
    elif isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        names = frozenset(tool.function.name for tool in allowed.tools)
        must = allowed.mode == "required"
    return ToolUse(tools, names, must, most)


def shown_tools(tools: Sequence[FunctionDefinition]) -> list[dict[str, Any]]:
    """OpenAI's tool objects for a chat template, without what does not concern a model."""
    return [{"type": "function", "function": _shown(tool)} for tool in tools]


def _shown(tool: FunctionDefinition) -> dict[str, Any]:
    described = {} if tool.description is None else {"description": tool.description}
    return {"name": tool.name, **described, "parameters": tool.parameters or NO_PARAMETERS}
