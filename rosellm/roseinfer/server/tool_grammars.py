"""The grammar of a chat answer: a form of its own, calls that have to fit, reasoning before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.server.grammars import Grammars, read_source
from rosellm.roseinfer.server.off_loop import off_loop, weight
from rosellm.roseinfer.server.schemas.structured import Form
from rosellm.roseinfer.server.schemas.tools import FunctionDefinition
from rosellm.roseinfer.server.tools import NO_PARAMETERS, ToolUse
from rosellm.roseinfer.text.answer_parser import AnswerFormat
from rosellm.roseinfer.text.grammar_source import Lark
from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.roseinfer.text.tool_grammar import (
    Callable,
    form_grammar,
    object_schema,
    tool_grammar,
)


async def answer_grammar(
    form: Form | None,
    use: ToolUse | None,
    format: AnswerFormat,
    grammars: Grammars,
    tenant: str = "",
) -> str:
    """What an answer has to match; empty where it is free.

    Args:
        tenant: who asks.

    Raises:
        RequestError: it cannot be enforced; names the field, and the place in a schema.
    """
    if use is not None and use.enforced:
        for index, tool in use.callable:
            await grammars.checked(object_schema(schema_of(tool, index)), place_of(index), tenant)
    size = 0 if use is None else weight(*(tool.parameters for _, tool in use.callable))
    if use is not None and use.enforced and (use.must or form is None):
        param = "tool_choice" if use.must else "tools"
        calls = await off_loop(size, lambda: enforced_calls(use, format, grammars.tokenizer))
        return await grammars.checked(calls, param, tenant)
    if form is None:
        return ""
    asked, param = form
    size += weight(*vars(asked).values())
    source = await off_loop(size, lambda: read_source(asked, param))
    text = await grammars.checked(source, param, tenant)
    tools = [] if use is None else _beside_a_form(use, format)
    special = special_markers(format, grammars.tokenizer)
    whole = await off_loop(size, lambda: form_grammar(format, source, special, tools))
    return text if whole is source else await grammars.checked(whole, param, tenant)


def _beside_a_form(use: ToolUse, format: AnswerFormat) -> list[Callable]:
    """Tools that may be called in place of an answer, where a marker tells the two apart."""
    known = format.tool_format
    if known is None or known.shape is None or not known.start:
        return []
    return [
        Callable(tool.name, schema_of(tool, index) if tool.strict else None)
        for index, tool in use.callable
    ]


def special_markers(format: AnswerFormat, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of those of a format's markers that are special tokens."""
    ids = {marker: tokenizer.token_to_id(marker) for marker in format.markers}
    return {m: id for m, id in ids.items() if id is not None and id in tokenizer.special_ids}


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
    return tool_grammar(format, tools, use.must, special_markers(format, tokenizer))


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
