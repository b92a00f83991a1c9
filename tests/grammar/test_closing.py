"""Ways out of grammars, found from wherever an answer has come to."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rosellm.roseinfer.grammar import closing
from rosellm.roseinfer.grammar.closing import find_closing, mended
from rosellm.roseinfer.grammar.compiler import compile_grammar
from rosellm.roseinfer.grammar.literals import literals_of
from rosellm.roseinfer.grammar.vocabulary import Vocabulary
from rosellm.roseinfer.text.grammar_source import (
    Choice,
    GrammarSource,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    grammar_text,
)

THINKS = Lark(
    'start: thoughts answer\nthoughts[suffix="</think>"]: /(.|\\n)*/\n'
    'answer: %json {"type": "object"}'
)
NESTED: dict[str, Any] = {"type": "string"}
for _ in range(6):
    NESTED = {"type": "object", "properties": {"a": NESTED}, "required": ["a"]}


@pytest.mark.parametrize(
    ("source", "before", "longest"),
    [
        (JsonObject(), '{"a": [[[{"x": -', 8),
        (JsonObject(), '{"a": "text in which } and ] end nothing', 3),
        (JsonSchema(NESTED), "", 60),
        (JsonSchema({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}), '"A', 10),
        (JsonSchema({"type": "string", "format": "uuid"}), "", 40),
        (JsonSchema({"type": "string", "pattern": "[A-Z]cole$"}), '"no end in sight', 9),
        (
            JsonSchema(
                {
                    "type": "object",
                    "patternProperties": {"\\d{3}": {"type": "null"}},
                    "additionalProperties": False,
                }
            ),
            '{"name',
            12,
        ),
        (JsonSchema({"type": "string", "format": "uri"}), '"www.no.scheme', 9),
        (JsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 5}), "[1,", 12),
        (Choice(("red", "crimson")), "c", 8),
        (Regex("(a|b)+c"), "abab", 2),
        (THINKS, "", 14),
    ],
)
def test_it_is_found(
    source: GrammarSource, before: str, longest: int, vocabulary: Vocabulary
) -> None:
    text = grammar_text(source)
    matcher = compile_grammar(text, vocabulary)
    assert matcher.consume_tokens(vocabulary.trie.greedy_tokenize(before))
    found = find_closing(
        matcher, vocabulary, longest=longest, effort=600, literals=literals_of(text, vocabulary)
    )
    assert found is not None
    assert len(found) <= longest
    assert not matcher.is_accepting(), "the matcher stays where it is"
    assert matcher.consume_tokens(found)
    assert matcher.is_accepting()


def test_no_way_is_longer_than_it_may_be(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(grammar_text(JsonSchema(NESTED)), vocabulary)
    assert find_closing(matcher, vocabulary, longest=5, effort=100) is None


def test_a_search_without_end_is_bounded(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(grammar_text(Regex("(.|\n)*never")), vocabulary)
    begun = time.monotonic()
    assert find_closing(matcher, vocabulary, longest=4000, effort=25) is None
    assert time.monotonic() - begun < 20


def test_tokens_that_end_an_answer_are_avoided(vocabulary: Vocabulary) -> None:
    matcher = compile_grammar(grammar_text(Regex("[ab]")), vocabulary)
    a, b = vocabulary.single[ord("a")], vocabulary.single[ord("b")]
    assert find_closing(matcher, vocabulary, longest=3, effort=25, avoid={a}) == [b]


def test_a_known_way_is_mended(vocabulary: Vocabulary) -> None:
    trie = vocabulary.trie
    matcher = compile_grammar(grammar_text(JsonObject()), vocabulary)
    assert matcher.consume_tokens(trie.greedy_tokenize('{"a": 1, "b": "x'))
    found = mended(matcher, vocabulary, trie.greedy_tokenize("}"), longest=4, taken=1)
    assert found is not None
    assert trie.decode_bytes(found) == b'"}'


@pytest.mark.parametrize(
    "source",
    [
        JsonSchema({"type": "object", "properties": {"a": {"type": "number"}}}),
        Regex("(ab|a)*c?"),
        THINKS,
    ],
)
def test_an_end_is_known_without_going_there(source: GrammarSource, vocabulary: Vocabulary) -> None:
    """As many ways as there are, right and wrong: what is said of each is what is found there."""
    matcher = compile_grammar(grammar_text(source), vocabulary)
    texts = ["{}", "{", '{"a": 1}', '{"a": 1', '{"a": 1e', '{"a": "x"}', '{"b": [1]} ', "ab"]
    texts += ["abac", "acc", "", "hm</think>{}", "hm</think>", '{"a": 1}}', "aab"]
    for text in texts:
        tokens = vocabulary.trie.greedy_tokenize(text)
        there = matcher.deep_copy()
        right = there.try_consume_tokens(tokens) == len(tokens) and there.is_accepting()
        assert closing._ends(matcher, tokens, vocabulary) == right, text


def test_a_known_end_shortens_the_search(vocabulary: Vocabulary) -> None:
    """From a new item of a list on, only that item has to be found."""
    text = grammar_text(JsonSchema({"type": "array", "items": NESTED}))
    matcher = compile_grammar(text, vocabulary)
    assert matcher.consume_tokens(vocabulary.trie.greedy_tokenize("["))
    end = vocabulary.trie.greedy_tokenize("]")
    assert matcher.consume_tokens(vocabulary.trie.greedy_tokenize('{"a":'))
    found = find_closing(matcher, vocabulary, longest=100, effort=30, known=end)
    assert found is not None
    assert found[-len(end) :] == end
    assert closing._ends(matcher, found, vocabulary)
