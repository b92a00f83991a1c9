"""DeepSeek V3, R1 and V3.1: markers round all calls, round each, and behind the name.

Before V3.1 a kind stands before the name's marker and a code fence round the arguments.
"""

from __future__ import annotations

import re

from rosellm.roseinfer.text.tools.calls import Calls
from rosellm.roseinfer.text.tools.format import ToolFormat
from rosellm.roseinfer.text.tools.incoming import SPACE, Incoming, Waits
from rosellm.roseinfer.text.tools.json_calls import read_arguments

BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```"
_NAME = re.compile(r"[\w.-]+")


def read(text: Incoming, calls: Calls) -> Waits[None]:
    """The calls between the outer markers."""
    yield from text.peek(SPACE)
    while (yield from text.starts(BEGIN)):
        yield from text.peek(SPACE)
        name = yield from text.run(_NAME)
        yield from text.peek(SPACE)
        yield from text.expect(SEP)
        fenced = (yield from text.peek(SPACE)) not in ("{", '"')
        if fenced:
            name = yield from text.run(_NAME)
            yield from text.peek(SPACE)
            yield from text.expect(_FENCE)
            yield from text.starts("json")
        yield from read_arguments(text, calls, name)
        yield from text.peek(SPACE)
        if fenced:
            yield from text.starts(_FENCE)
            yield from text.peek(SPACE)
        yield from text.expect(END)
        text.keep = text.place
        yield from text.peek(SPACE)


FORMAT = ToolFormat(
    start="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
    read=read,
    inner=(BEGIN, SEP, END),
)
