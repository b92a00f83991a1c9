"""The formats of tool calls by name, and how a chat template gives one away.

Modules are named by strings and imported when they are needed.
"""

from __future__ import annotations

import importlib

from rosellm.roseinfer.text.tools.format import ToolFormat

FORMATS = {
    name: f"{__package__}.{name}"
    for name in ("hermes", "llama3_json", "mistral", "mistral_args", "pythonic", "deepseek")
}

# What a template says, all of it, that speaks this format; the first one counts.
_SIGNS = (
    (("<|channel|>", "<|message|>"), "harmony"),
    (("<tool_call>", "<function="), None),  # Qwen3-Coder's, which is not JSON
    (("<tool_call>", "<arg_key>"), None),  # GLM's
    (("<tool_call>", '"arguments"'), "hermes"),
    (("[TOOL_CALLS]", "[ARGS]"), "mistral_args"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁calls▁begin｜>",), "deepseek"),
    (("<|python_start|>",), "pythonic"),
    (("[func_name1(",), "pythonic"),
    (("<|start_header_id|>", "tools", '"parameters"'), "llama3_json"),
)


def load(name: str) -> ToolFormat:
    """The format of this name."""
    format: ToolFormat = importlib.import_module(FORMATS[name]).FORMAT
    return format


def recognise(template: str) -> str | None:
    """The name of the format that a chat template tells a model to call tools in.

    >>> recognise("{{ '[TOOL_CALLS] [' }}")
    'mistral'
    """
    plain = template.replace('\\"', '"')
    for signs, name in _SIGNS:
        if all(sign in plain for sign in signs):
            return name
    return None
