"""Grammar texts, judged by the library that reads them, over a vocabulary of single bytes."""

from __future__ import annotations

import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from rosellm.roseinfer.text.grammar_source import (
    Choice,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    grammar_text,
    rules,
    symbol,
)

END, CALL = 256, 257


class Bytes:
    """Every byte a token, and two special ones."""

    eos_token_id = END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"</s>", b"<tool_call>")
    special_token_ids = (END, CALL)
    is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = LLTokenizer(Bytes(), slices=[])


def matches(grammar: str, tokens: str | list[int]) -> bool:
    matcher = LLMatcher(TOKENIZER, grammar)
    assert not matcher.is_error(), matcher.get_error()
    ids = list(tokens.encode()) if isinstance(tokens, str) else tokens
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (JsonObject(), ['{"a": [1, {"b": null}]}', "{}", "{\n\t}"], ["[]", "1", "{", "{}x"]),
        (
            JsonSchema(PERSON),
            ['{"name": "é\\n", "age": 3}'],
            ['{"name": "a"}', '{"name": 1, "age": 3}', '{"name": "a", "age": 3, "b": 1}'],
        ),
        (JsonSchema(True), ["1", '"x"', "[{}]", "null"], ["nul", ""]),
        (Regex(r"[a-c]+/\d\.\n?"), ["ab/1.", "c/2.\n"], ["ab/1", "d/1."]),
        (Regex("a/b\\/c\n"), ["a/b/c\n"], ["a/b/c"]),
        (Regex("^x$"), ["x"], ["^x$", "xx"]),
        (Regex(""), [""], ["a"]),
        (Choice(("yes", 'no "really"', "é\\n\n")), ["yes", 'no "really"', "é\\n\n"], ["no", "y"]),
        (Lark('start: word ("," word)*\nword: /[a-z]+/'), ["a", "a,bc"], ["a,", ","]),
    ],
)
def test_the_whole_text_matches_and_nothing_else(source, good, bad):
    nested = f'start: "(" inner ")"\n{rules(source, "inner")}'
    for text in good:
        assert matches(grammar_text(source), text), text
        assert matches(nested, f"({text})"), text
    for text in bad:
        assert not matches(grammar_text(source), text), text
        assert not matches(nested, f"({text})"), text


@pytest.mark.parametrize(
    ("gap", "allowed"), [(" ", True), ("\n" + 40 * " ", True), ("  ", False), (41 * "\n", False)]
)
def test_white_space_is_bounded(gap, allowed):
    assert matches(grammar_text(JsonObject()), f"{{{gap}}}") is allowed


def test_a_schema_cannot_change_the_compilers_options():
    lenient = JsonSchema({"not": {}, "x-guidance": {"lenient": True}})
    assert LLMatcher(TOKENIZER, grammar_text(lenient)).is_error()


@pytest.mark.parametrize("token", [CALL, ord("a")])
def test_a_token_is_named_by_its_id(token):
    grammar = f"start: {symbol(token)} answer\n{rules(Choice(('b',)), 'answer')}"
    assert matches(grammar, [token, ord("b")])
    assert not matches(grammar, [*b"<tool_call>b"])


def test_many_parts_take_as_long_each_as_few() -> None:
    """Copying all of them for each one, it took ten seconds."""
    began = time.monotonic()
    grammar_text(JsonSchema({"allOf": [{}] * 50_000}))
    grammar_text(JsonSchema({"properties": {str(number): {} for number in range(50_000)}}))
    assert time.monotonic() - began < 4
