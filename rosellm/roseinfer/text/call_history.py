"""How a chat template wants tool calls that the assistant made in earlier turns.

OpenAI's messages carry a call's arguments as JSON text. Most templates want the object itself,
some the text, and some leave calls out; none says which. So one call is rendered in each way to
see what arrives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

from rosellm.roseinfer.errors import RequestError

CallsInHistory = Literal["objects", "text", "nowhere"]

_NAME, _KEY, _VALUE = "probed_tool", "probed_key", "probed value"
_AS_JSON = re.compile(f'"{_KEY}"\\s*:\\s*"{_VALUE}"')
_TEXT = f'{{"{_KEY}": "{_VALUE}"}}'
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "A tool.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]


class Renders(Protocol):
    """What is needed of a chat template."""

    @property
    def render(self) -> Callable[..., str]: ...


def calls_in_history(template: Renders) -> CallsInHistory:
    """What the template does with calls."""
    as_object, as_text = _rendered(template, {_KEY: _VALUE}), _rendered(template, _TEXT)
    if _AS_JSON.search(as_object):
        return "objects"
    if _AS_JSON.search(as_text):
        return "text"
    shown = _VALUE in as_object  # in a way that is not JSON
    return "objects" if shown or not (as_object or as_text) else "nowhere"


def _rendered(template: Renders, arguments: Any) -> str:
    """The end of a conversation with a call in it; empty where the template refuses it."""
    function = {"name": _NAME, "arguments": arguments}
    call = {"id": "a1B2c3D4e", "type": "function", "function": function}
    asked = {"role": "user", "content": "x"}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    told = {"role": "tool", "tool_call_id": "a1B2c3D4e", "name": _NAME, "content": "y"}
    try:
        return template.render([asked, called, told], tools=_TOOLS)
    except RequestError:
        return ""
