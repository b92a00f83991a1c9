"""Mistral's two forms, both to the end of the answer.

``[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]`` up to version 7 of its tokenizer, then
``[TOOL_CALLS]f[ARGS]{"a": 1}``, once a call. Versions 11 and 12 have ``[CALL_ID]`` and an id
behind the name.
"""

from __future__ import annotations

import re

from rosellm.roseinfer.text.parts import Call
from rosellm.roseinfer.text.tools.format import Shape, ToolFormat
from rosellm.roseinfer.text.tools.json_calls import arguments, leading_value, read_calls

_NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?\[ARGS\]\s*")
_NEXT = re.compile(r"\s*(?:\[TOOL_CALLS\]|$)")


def read(text: str) -> list[Call] | None:
    """The calls behind the first ``[TOOL_CALLS]``."""
    if _NAME.match(text) is None:
        return read_calls(text.removeprefix("[TOOL_CALLS]"))
    try:
        return _named(text)
    except (ValueError, RecursionError):
        return None


def _named(text: str) -> list[Call]:
    calls, place = [], 0
    while place < len(text):
        name = _NAME.match(text, place)
        if name is None:
            raise ValueError("no name")
        value = leading_value(text, name.end())
        then = _NEXT.match(text, name.end() + len(value))
        if then is None:
            raise ValueError("something else follows")
        calls.append(Call(name[1], arguments(value)))
        place = then.end()
    return calls


FORMAT = ToolFormat(
    start="[TOOL_CALLS]",
    end="",
    read=read,
    inner=("[ARGS]", "[CALL_ID]"),
    shape=Shape(
        before_name='{"name": "',
        before_arguments='", "arguments": ',
        after="}",
        between=", ",
        opening="[TOOL_CALLS][",
        closing="]",
    ),
    short_ids=True,
)
