"""Mistral's two forms, both to the end of the answer.

``[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]`` up to version 7 of its tokenizer, then
``[TOOL_CALLS]f[ARGS]{"a": 1}``, once a call. Versions 11 and 12 have ``[CALL_ID]`` and an id
behind the name.
"""

from __future__ import annotations

import re

from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.format import Shape, ToolFormat
from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, Waits
from rosellm.roseinfer.text.tools.json_calls import read_arguments, read_calls

_START, _CALL_ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.-]+")


def read(text: Incoming, calls: Calls) -> Waits[None]:
    """All calls of the older form, or one of the newer, behind which another may start."""
    yield from text.starts(_START)  # some write it twice
    if (yield from text.peek(SPACE)) in ("[", "{"):
        yield from read_calls(text, calls)
        return
    name = yield from text.run(_NAME)
    yield from text.peek(SPACE)
    if (yield from text.starts(_CALL_ID)):
        yield from text.peek(SPACE)
        yield from text.run(_NAME)
        yield from text.peek(SPACE)
    yield from text.expect(_ARGS)
    yield from read_arguments(text, calls, name)


FORMAT = ToolFormat(
    start=_START,
    end="",
    read=read,
    inner=(_ARGS, _CALL_ID),
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
