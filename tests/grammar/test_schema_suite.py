"""JSON Schema's own test suite: which of its schemas are accepted, and that answers fit them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import regex
from llguidance import LLMatcher

from rosellm.roseinfer.config import EngineConfig, ModelConfig
from rosellm.roseinfer.demo import demo_model
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.grammar.compiler import compile_grammar
from rosellm.roseinfer.grammar.constraint import GrammarError
from rosellm.roseinfer.grammar.vocabulary import Vocabulary
from rosellm.roseinfer.text.grammar_source import JsonSchema, grammar_text
from rosellm.roseinfer.text.json_schema import repeated_names, too_deep
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.grammar.conftest import END, add, answers

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
@pytest.mark.parametrize("model", ["random", "demo"])
@pytest.mark.usefixtures("unicode_classes")
def test_answers_fit(model: str, core: EngineCore, tokenizer: Tokenizer) -> None:
    """Every answer is complete and fits, whatever the model would rather say."""
    ends = [END]
    if model == "demo":
        ends = json.loads((Path(demo_model()) / "generation_config.json").read_text())[
            "eos_token_id"
        ]
        tokenizer = load_tokenizer(demo_model())
        core = build_engine(EngineConfig(ModelConfig(demo_model(), device="cpu")))
    names = json.loads(RECORDED.read_text())
    adds = [
        add(10_000 + number, JsonSchema(suite()[name]), max_tokens=ROOM, stop_token_ids=(*ends,))
        for number, name in enumerate(names)
    ]
    wrong = []
    for (id, _), text in answers(core, *adds).items():
        name = names[id - 10_000]
        assert text.error is None, (name, text.error)
        written = text.read(tokenizer)
        if not _fits(written, suite()[name]):
            wrong.append(f"{name} ({text.finish}): {written}")
    assert wrong == []


@pytest.fixture
def unicode_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator reads patterns as ECMAScript has them, ``\\p{Letter}`` for one."""
    for module in (jsonschema._keywords, jsonschema._utils):
        monkeypatch.setattr(module, "re", regex)


def _fits(written: str, schema: Any) -> bool:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
    try:
        return bool(validator.is_valid(json.loads(written)))
    except json.JSONDecodeError:
        return False
