"""The grammar of an answer that has to call tools, or whose calls have to fit their schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.schemas.tools import FunctionDefinition
from rosellm.roseinfer.server.tools import NO_PARAMETERS, ToolUse
from rosellm.roseinfer.text.answer_parser import AnswerFormat
from rosellm.roseinfer.text.grammar_source import Lark
from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.roseinfer.text.tool_grammar import Callable, tool_grammar


def enforced_calls(use: ToolUse, format: AnswerFormat, tokenizer: Tokenizer) -> Lark:
    """The grammar of what ``use`` insists on.

    Raises:
        RequestError: the format is one that is only read, or a schema is not of an object.
    """
    known = format.tool_format
    if known is None or known.shape is None:
        param = "tool_choice" if use.must else "tools"
        raise RequestError(
            f"{param}: calls in this model's format can be read, but not enforced",
            param=param,
            code="unsupported_parameter",
        )
    tools = [
        Callable(tool.name, schema_of(tool, index) if use.must or tool.strict else None)
        for index, tool in use.callable
    ]
    ids = {marker: tokenizer.token_to_id(marker) for marker in format.markers}
    special = {m: id for m, id in ids.items() if id is not None and id in tokenizer.special_ids}
    return tool_grammar(format, tools, use.must, special)


def schema_of(tool: FunctionDefinition, index: int) -> Mapping[str, Any]:
    """The schema of a tool's arguments.

    Args:
        index: of the tool in the request, which a refusal names.
    """
    schema = tool.parameters or NO_PARAMETERS
    if schema.get("type", "object") != "object":
        where = place_of(index)
        raise RequestError(f'{where}: /type must be "object"', param=where, code="invalid_value")
    return schema


def place_of(index: int) -> str:
    """Where a tool's schema stands in the request."""
    return f"tools[{index}].function.parameters"
