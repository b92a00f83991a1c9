"""Calls that have to be made, or to fit: the grammar that the engine is given."""

from __future__ import annotations

import asyncio
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from tests.server.asking import (
    ADD,
    NOW,
    TEMPLATE,
    THINKING,
    TOOLS,
    call,
    refused,
    served,
)


class _Bytes:
    """Every byte a token, for the library that follows grammars."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"</s>")
    special_token_ids = (256,)
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


BYTES = LLTokenizer(_Bytes(), slices=[])


def grammar_of(template: str = TEMPLATE, **fields: Any) -> str:
    """What the engine is told that the answer must match."""

    async def test() -> str:
        async with served("", template) as server:
            response = await server.chat(**fields)
            assert response.status_code == 200, response.text
            return server.engine.added[0].grammar

    return asyncio.run(test())


def allows(grammar: str, text: str) -> bool:
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def test_a_call_has_to_be_made() -> None:
    grammar = grammar_of(tools=TOOLS, tool_choice="required")
    for text in (call("now"), call("add", a=1), call("add", a=1) + "\n" + call("now")):
        assert allows(grammar, text), text
    for text in ("", "Hi", call("add", a="1"), call("nobody"), f"Hi {call('now')}"):
        assert not allows(grammar, text), text


def test_one_function_has_to_be_called_once() -> None:
    named = {"type": "function", "function": {"name": "add"}}
    grammar = grammar_of(tools=TOOLS, tool_choice=named)
    assert allows(grammar, call("add", a=1))
    for text in (call("now"), call("add", a="1"), call("add", a=1) + "\n" + call("add", a=1)):
        assert not allows(grammar, text), text


def test_one_of_the_allowed_has_to_be_called() -> None:
    allowed = {"mode": "required", "tools": [NOW]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    grammar = grammar_of(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert allows(grammar, call("now"))
    assert not allows(grammar, call("add", a=1))
    assert not allows(grammar, call("now") + "\n" + call("now"))


def test_strict_calls_fit_where_they_are_made() -> None:
    strict = {**ADD, "function": {**ADD["function"], "strict": True}}
    grammar = grammar_of(tools=[strict, NOW])
    for text in ("Hi <b>", call("add", a=1), f"Hi.\n{call('now', x=1)}", ""):
        assert allows(grammar, text), text
    for text in (call("add", a="1"), call("nobody"), "<tool_call> so"):
        assert not allows(grammar, text), text


def test_reasoning_comes_before_a_call_that_has_to_be_made() -> None:
    grammar = grammar_of(THINKING, tools=TOOLS, tool_choice="required")
    assert allows(grammar, f"<think>Hm.</think>\n\n{call('now')}")
    off = grammar_of(THINKING, tools=TOOLS, tool_choice="required", reasoning_effort="none")
    assert not allows(off, f"<think>Hm.</think>\n\n{call('now')}")
    assert allows(off, call("now"))


def test_nothing_is_enforced_that_need_not_be() -> None:
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        assert grammar_of(tools=TOOLS, **fields) == ""


def test_what_cannot_be_enforced_is_refused() -> None:
    channels = "{{ tools }}{# <|channel|> <|message|> #}"
    strict = [{**NOW, "function": {"name": "now", "strict": True}}]
    assert "enforced" in refused(
        "tool_choice", template=channels, tools=TOOLS, tool_choice="required"
    )
    assert "enforced" in refused("tools", template=channels, tools=strict)
    array = {"name": "f", "parameters": {"type": "array"}}
    tools = [NOW, {"type": "function", "function": array}]
    refused("tools[1].function.parameters", tools=tools, tool_choice="required")
