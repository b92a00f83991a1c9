"""Grammars of calls, judged by the library that follows them and by the parser that reads them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from rosellm.roseinfer.text.answer_parser import AnswerFormat
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.tool_grammar import Callable, tool_grammar
from tests import bfcl

MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>")
SPECIAL = {marker: 257 + index for index, marker in enumerate(MARKERS)}
END = 256


class Bytes:
    """Every byte a token, and special ones."""

    eos_token_id = END
    bos_token_id = None
    tokens = (
        *(bytes([byte]) for byte in range(256)),
        b"</s>",
        *(marker.encode() for marker in MARKERS),
    )
    special_token_ids = (END, *SPECIAL.values())
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = LLTokenizer(Bytes(), slices=[])
TOOLS = [
    Callable("add", {"type": "object", "properties": {"a": {"type": "integer"}},
                     "required": ["a"], "additionalProperties": False}),
    Callable("say", {"properties": {"text": {"type": "string"}}, "required": ["text"]}),
    Callable("any.thing", None),
]  # fmt: skip
NAMES = frozenset(tool.name for tool in TOOLS)
WRITTEN = {
    "hermes": [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>\n{"name": "say", "arguments": {"text": "</tool_call>"}}\n</tool_call>',
        '<tool_call>\n{"name": "any.thing", "arguments": {"x": []}}\n</tool_call>',
    ],
    "llama3_json": [
        '{"name": "add", "parameters": {"a": 1}}',
        '{"name": "say", "parameters": {"text": "; {"}}',
        '{"name": "any.thing", "parameters": {"x": []}}',
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
        '[TOOL_CALLS][{"name": "say", "arguments": {"text": "]"}}]',
        '[TOOL_CALLS][{"name": "any.thing", "arguments": {"x": []}}]',
    ],
    "mistral_args": [
        '[TOOL_CALLS]add[ARGS]{"a": 1}',
        '[TOOL_CALLS]say[ARGS]{"text": "[TOOL"}',
        '[TOOL_CALLS]any.thing[ARGS]{"x": []}',
    ],
}
CALLS = [Call("add", '{"a": 1}'), "text", Call("any.thing", '{"x": []}')]
SEVERAL = {
    "hermes": "\n".join(WRITTEN["hermes"]),
    "llama3_json": "; ".join(WRITTEN["llama3_json"]),
    "mistral": ", ".join(each[13:-1] for each in WRITTEN["mistral"]).join(("[TOOL_CALLS][", "]")),
    "mistral_args": "".join(WRITTEN["mistral_args"]),
}
WRONG = {
    "hermes": [
        '<tool_call>\n{"name": "add", "arguments": {"a": "1"}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "any.thing", "arguments": []}\n</tool_call>',
        "<tool_call>",
        "<tool_call> is how I would begin",
    ],
    "llama3_json": [
        '{"name": "add", "parameters": {"a": 1.5}}',
        '{"name": "nobody", "parameters": {}}',
        " {",
        '{"name": "say", "parameters": {"text": 1}}',
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": true}}]',
        "[TOOL_CALLS][]",
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}] and more',
    ],
    "mistral_args": [
        "[TOOL_CALLS]add[ARGS]{}",
        "[TOOL_CALLS]nobody[ARGS]{}",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]say{}",
    ],
}
NAMED = sorted(WRITTEN)


def ids(text: str, special: dict[str, int]) -> list[int]:
    out: list[int] = []
    while text:
        marker = next((each for each in special if text.startswith(each)), None)
        out += [special[marker]] if marker else text[0].encode()
        text = text[len(marker or "x") :]
    return out


class Judge:
    """Whether texts match a grammar, written with or without special tokens."""

    def __init__(self, format: AnswerFormat, must: bool, special: dict[str, int]) -> None:
        self._special = special
        self._grammar = tool_grammar(format, TOOLS, must, special).text

    def __call__(self, text: str) -> bool:
        matcher = LLMatcher(TOKENIZER, self._grammar)
        assert not matcher.is_error(), matcher.get_error()
        tokens = ids(text, self._special)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def answer_format(name: str, most: int | None = None) -> AnswerFormat:
    return AnswerFormat(tools=name, names=NAMES, most=most)


def special_of(format: AnswerFormat, with_special: bool) -> dict[str, int]:
    """In strings, special tokens stand for themselves: only markers outside of them are left."""
    return {m: SPECIAL[m] for m in format.markers if m in SPECIAL} if with_special else {}


def outside_strings(name: str, texts: list[str]) -> list[str]:
    return [text for text in texts if '"</tool_call>"' not in text]


def parse(format: AnswerFormat, text: str) -> Parts:
    parser = format.parser()
    assert parser is not None
    return parser.feed(text) + parser.flush()


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_a_call_that_has_to_be_made(name: str, with_special: bool) -> None:
    format = answer_format(name)
    special = special_of(format, with_special)
    judge = Judge(format, True, special)
    for text in outside_strings(name, WRITTEN[name]) if with_special else WRITTEN[name]:
        assert judge(text), text
        [call] = parse(format, text).calls
        assert call.name in NAMES
    for text in ["", "Hello", "\n", *WRONG[name]]:
        assert not judge(text), text
    assert not judge("Hello " + WRITTEN[name][0])


@pytest.mark.parametrize("name", NAMED)
def test_several_calls_or_one(name: str) -> None:
    text = SEVERAL[name]
    assert Judge(answer_format(name), True, {})(text)
    parts = parse(answer_format(name), text)
    assert [call.name for call in parts.calls] == ["add", "say", "any.thing"]
    assert parts.content == ""
    assert not Judge(answer_format(name, most=1), True, {})(text)
    assert Judge(answer_format(name, most=1), True, {})(WRITTEN[name][0])


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_a_call_that_may_be_made(name: str, with_special: bool) -> None:
    format = answer_format(name)
    special = special_of(format, with_special)
    judge = Judge(format, False, special)
    texts = ["", "Hello", " two\n\nlines\n", "a < b [ c { d", "é 😀", '"name": "add"']
    texts += outside_strings(name, WRITTEN[name])
    if name != "llama3_json":
        texts.append("Let me see. \n" + WRITTEN[name][0])
    for text in texts:
        assert judge(text), text
    for text in WRONG[name]:
        assert not judge(text), text


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize("name", NAMED)
def test_reasoning_comes_first(name: str, must: bool, with_special: bool) -> None:
    call = WRITTEN[name][0]
    bad = WRONG[name][1]
    for opened in (False, True):
        format = replace(answer_format(name), reasoning="think", opened=opened)
        judge = Judge(format, must, special_of(format, with_special))
        start = "" if opened else "<think>"
        assert judge(f"{start}\nI might {{ or not.\n</think>\n\n{call}")
        assert judge(call) is not opened
        assert judge("Hello") is (not must and not opened)
        assert not judge(f"{start} for ever")
        assert not judge(f"{start}hm</think>\n{bad}")
        assert judge(f"{start}hm</think>\n\nHello") is not must


def test_any_name_of_a_rule_is_left_to_tools() -> None:
    """A tool may be called what it likes."""
    tools = [Callable(name, {"type": "object"}) for name in ("start", "TEXT", "call", "a-b.c_9")]
    grammar = tool_grammar(answer_format("hermes"), tools, True, {}).text
    matcher = LLMatcher(TOKENIZER, grammar)
    text = '<tool_call>\n{"name": "a-b.c_9", "arguments": {}}\n</tool_call>'
    assert matcher.try_consume_tokens(list(text.encode())) == len(text)
    assert json.dumps("a-b.c_9") in grammar


# -- any tool --------------------------------------------------------------------------------

LIKELY_ENDS = list(b'"}],:01ea>\n</_')
KINDS = [
    {"type": "function", "function": {"name": "none.at-all_", "parameters": {"type": "object"}}},
    {
        "type": "function",
        "function": {
            "name": "all",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "enum": ["a", "b c"]},
                    "number": {"type": "number", "default": 1},
                    "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                    "nested": {
                        "type": "object",
                        "properties": {"flag": {"type": "boolean"}, "any": {}},
                        "required": ["flag"],
                    },
                },
                "required": ["text", "list", "nested"],
            },
        },
    },
]


def walk(grammar: str, source: random.Random) -> str:
    """A text that a grammar allows: for a while any, then the shortest way out."""
    matcher = LLMatcher(TOKENIZER, grammar)
    assert not matcher.is_error(), matcher.get_error()
    out = bytearray()
    while not matcher.is_stopped():
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256])
        ends = [byte for byte in LIKELY_ENDS if byte in allowed]
        if not len(allowed) or (len(out) > 300 and matcher.is_accepting()):
            break
        printable = [int(byte) for byte in allowed if byte < 128]
        byte = ends[0] if ends and len(out) > 60 else source.choice(printable or [*allowed])
        assert matcher.consume_token(int(byte)), matcher.get_error()
        out.append(int(byte))
        assert len(out) < 20_000
    assert matcher.is_accepting()
    return out.decode()


def check_tool(tool: dict[str, Any], source: random.Random) -> None:
    function = tool["function"]
    schema = function["parameters"]
    format = AnswerFormat(tools="hermes", names=frozenset({function["name"]}), most=1)
    called = Callable(function["name"], schema)
    text = walk(tool_grammar(format, [called], True, {}).text, source)
    parts = parse(format, text)
    assert parts.content == "", text
    [call] = parts.calls
    assert call.name == function["name"]
    jsonschema.Draft202012Validator(schema).validate(json.loads(call.arguments))


def test_any_kind_of_tool() -> None:
    for seed in range(5):
        for tool in KINDS:
            check_tool(tool, random.Random(seed))


@pytest.mark.skipif(not bfcl.FOLDER.is_dir(), reason="no ../shared/data beside this checkout")
@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_tools_of_the_leaderboard(every: int) -> None:
    tools = list(bfcl.tools())
    assert len(tools) > 600
    for index, tool in enumerate(tools):
        if index % every == 0:
            check_tool(tool, random.Random(index))
