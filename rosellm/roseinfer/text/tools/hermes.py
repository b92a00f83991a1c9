"""Hermes 2 and later, Qwen 2.5 and 3, SmolLM3, and rosellm's demo model.

``<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>``, once a call.
"""

from __future__ import annotations

from rosellm.roseinfer.text.tools.format import Shape, ToolFormat
from rosellm.roseinfer.text.tools.json_calls import read_calls

FORMAT = ToolFormat(
    start="<tool_call>",
    end="</tool_call>",
    read=read_calls,
    shape=Shape(
        before_name='<tool_call>\n{"name": "',
        before_arguments='", "arguments": ',
        after="}\n</tool_call>",
        between="\n",
    ),
)
