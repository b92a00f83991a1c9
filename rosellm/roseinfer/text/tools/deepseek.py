"""DeepSeek V3, R1 and V3.1: markers round all calls, round each, and behind the name.

Before V3.1 a kind stands before the name's marker and a code fence round the arguments.
"""

from __future__ import annotations

import re

from rosellm.roseinfer.text.parts import Call
from rosellm.roseinfer.text.tools.format import ToolFormat
from rosellm.roseinfer.text.tools.json_calls import arguments

BEGIN, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_CALL = re.compile(f"\\s*{BEGIN}(.*?){SEP}(.*?){END}\\s*", re.DOTALL)
_FENCED = re.compile(r"\s*([\w.-]+)\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)


def read(text: str) -> list[Call] | None:
    """The calls between the outer markers."""
    calls: list[Call] = []
    place = 0
    while place < len(text) or not calls:
        found = _CALL.match(text, place)
        if found is None:
            return None
        fenced = _FENCED.fullmatch(found[2])
        name, given = fenced.groups() if fenced else found.groups()
        try:
            calls.append(Call(name.strip(), arguments(given.strip())))
        except (ValueError, RecursionError):
            return None
        place = found.end()
    return calls


FORMAT = ToolFormat(
    start="<｜tool▁calls▁begin｜>",
    end="<｜tool▁calls▁end｜>",
    read=read,
    inner=(BEGIN, SEP, END),
)
