"""JSON Schema's own test suite: which of its schemas are accepted, and that answers fit them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.grammar.compiler import compile_grammar
from rosellm.roseinfer.grammar.constraint import GrammarError
from rosellm.roseinfer.grammar.vocabulary import Vocabulary
from rosellm.roseinfer.text.grammar_source import JsonSchema, grammar_text
from rosellm.roseinfer.text.json_schema import repeated_names, too_deep
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.grammar.conftest import add, answers

SUITE = Path(__file__).parents[3] / "shared" / "data" / "json-schema-test-suite" / "tests"
RECORDED = Path(__file__).parent / "accepted_schemas.json"
pytestmark = pytest.mark.skipif(not SUITE.is_dir(), reason="no ../shared/data here")
ROOM = 200


@cache
def suite() -> dict[str, Any]:
    return dict(_suite())


def _suite() -> Iterator[tuple[str, Any]]:
    for file in sorted(SUITE.rglob("*.json")):
        for case in json.loads(file.read_text()):
            yield f"{file.relative_to(SUITE)}: {case['description']}", case["schema"]


def accepted(vocabulary: Vocabulary) -> list[str]:
    return [name for name, schema in suite().items() if _compiles(schema, vocabulary)]


def _compiles(schema: Any, vocabulary: Vocabulary) -> bool:
    if too_deep(schema) is not None or repeated_names(schema) is not None:
        return False
    try:
        compile_grammar(grammar_text(JsonSchema(schema)), vocabulary)
    except GrammarError:
        return False
    return True


def test_the_recorded_list_is_what_is_accepted(vocabulary: Vocabulary) -> None:
    """A shorter list is a regression, a longer one is to be recorded."""
    assert accepted(vocabulary) == json.loads(RECORDED.read_text())


def test_nothing_that_the_library_compiles_is_refused(vocabulary: Vocabulary) -> None:
    refused = [
        name
        for name, schema in suite().items()
        if isinstance(schema, dict)
        and name not in json.loads(RECORDED.read_text())
        and not _library_refuses(schema, vocabulary)
    ]
    assert refused == []


def _library_refuses(schema: dict[str, Any], vocabulary: Vocabulary) -> bool:
    matcher = LLMatcher(
        vocabulary.trie, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0
    )
    if not matcher.is_error():
        matcher.compute_bitmask()  # what nothing fits does compile
    return matcher.is_error()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_of_a_random_model_fit(core: EngineCore, tokenizer: Tokenizer) -> None:
    names = json.loads(RECORDED.read_text())
    adds = [
        add(10_000 + number, JsonSchema(suite()[name]), max_tokens=ROOM)
        for number, name in enumerate(names)
    ]
    for (id, _), text in answers(core, *adds).items():
        name = names[id - 10_000]
        assert text.error is None, (name, text.error)
        if text.finish == "length":
            raise AssertionError(f"{name}: not complete within {ROOM} tokens")
        written = text.read(tokenizer)
        validator = jsonschema.Draft202012Validator(
            suite()[name], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        assert validator.is_valid(json.loads(written)), (name, written)
