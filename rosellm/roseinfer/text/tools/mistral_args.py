"""Mistral's newer form, ``[TOOL_CALLS]f[ARGS]{"a": 1}``; read as the older one is."""

from __future__ import annotations

from dataclasses import replace

from rosellm.roseinfer.text.tools import mistral
from rosellm.roseinfer.text.tools.format import Shape

FORMAT = replace(
    mistral.FORMAT,
    shape=Shape(before_name="[TOOL_CALLS]", before_arguments="[ARGS]", after=""),
)
