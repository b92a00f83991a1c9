"""Llama 3.1 to 3.3: an answer that is JSON, with or without a marker before it.

``{"name": "f", "parameters": {"a": 1}}``, several of them with semicolons in between.
"""

from __future__ import annotations

from rosellm.roseinfer.text.tools.format import Shape, ToolFormat
from rosellm.roseinfer.text.tools.json_calls import read_calls

FORMAT = ToolFormat(
    start="<|python_tag|>",
    end="",
    read=read_calls,
    bare="{",
    shape=Shape(
        before_name='{"name": "',
        before_arguments='", "parameters": ',
        after="}",
        between="; ",
    ),
)
