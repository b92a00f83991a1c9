"""Messages as chat templates take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.schemas.messages import (
    AssistantMessage,
    Message,
    ToolCall,
    ToolMessage,
)
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.tools.format import Shape


class Turns:
    """Knows what one template wants.

    Args:
        shape: how this model writes calls, for templates that leave earlier ones out.
    """

    def __init__(self, template: ChatTemplate, shape: Shape | None) -> None:
        self._template = template
        self._shape = shape
        # Most templates know no developer and would drop what it says.
        self._knows_developer = not template.has_own or "developer" in template.source

    def __call__(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """
        Raises:
            RequestError: arguments of a call are not JSON.
        """
        called: dict[str, str] = {}  # names of functions by the ids of calls
        turns = []
        for index, message in enumerate(messages):
            turns.append(self._turn(message, index, called))
        return turns

    def _turn(self, message: Message, index: int, called: dict[str, str]) -> dict[str, Any]:
        role: str = message.role
        if role == "developer" and not self._knows_developer:
            role = "system"
        turn: dict[str, Any] = {"role": role, "content": message.text}
        if message.named is not None:
            turn["name"] = message.named
        if isinstance(message, ToolMessage):
            turn["tool_call_id"] = message.tool_call_id
            if message.tool_call_id in called:  # some templates show whose answer it is
                turn.setdefault("name", called[message.tool_call_id])
        if isinstance(message, AssistantMessage):
            self._add_reasoning(turn, message)
            self._add_calls(turn, message, index)
            called.update((call.id, call.function.name) for call in message.tool_calls or ())
        return turn

    def _add_reasoning(self, turn: dict[str, Any], message: AssistantMessage) -> None:
        """Under the names that templates have for it."""
        if message.thought is not None:
            turn |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.thought)

    def _add_calls(self, turn: dict[str, Any], message: AssistantMessage, index: int) -> None:
        if not message.tool_calls:
            return
        wants = self._template.calls
        places = [f"messages[{index}].tool_calls[{n}]" for n in range(len(message.tool_calls))]
        calls = list(zip(message.tool_calls, places, strict=True))
        if wants == "nowhere" and self._shape is not None:
            turn["content"] = _with_calls(
                message.text, [_written(*each) for each in calls], self._shape
            )
            return
        if message.content is None:
            turn["content"] = None
        turn["tool_calls"] = [_call(call, place, wants == "text") for call, place in calls]


def _call(call: ToolCall, place: str, as_text: bool) -> dict[str, Any]:
    name, arguments = _written(call, place)
    function = {"name": name, "arguments": arguments if as_text else from_json(arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _written(call: ToolCall, place: str) -> tuple[str, str]:
    """A call's name and arguments, which are JSON of an object."""
    given = call.function.arguments.strip() or "{}"
    try:
        fits = isinstance(from_json(given, allow_inf_nan=False), dict)
    except ValueError:
        fits = False
    if not fits:
        where = f"{place}.function.arguments"
        raise RequestError(
            f"{where}: must be the JSON of an object", param=where, code="invalid_value"
        )
    return call.function.name, given


def _with_calls(text: str, calls: Sequence[tuple[str, str]], shape: Shape) -> str:
    """Content that ends with calls, as the model writes them."""
    written = shape.between.join(
        f"{shape.before_name}{name}{shape.before_arguments}{arguments}{shape.after}"
        for name, arguments in calls
    )
    return f"{text}\n" * bool(text) + shape.opening + written + shape.closing
