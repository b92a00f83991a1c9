"""Speculative = plain where answers have to match a grammar."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.text.grammar_source import GrammarSource, JsonSchema, Regex, grammar_text
from tests.e2e.conftest import write_tokenizer
from tests.models.test_speculation import edited
from tests.tiny_models import Generated, build, generate, greedy, random_prompts, write_llama

SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"enum": ["rose", "tulip"]}, "maxItems": 4},
        "count": {"type": "integer"},
        "more": {"type": "string", "maxLength": 12},
    },
    "required": ["names", "count", "more"],
    "additionalProperties": False,
}
SOURCES = [JsonSchema(SCHEMA), Regex("(rose|tulip)( (and|or) (rose|tulip)){3,9}")]
MIXES: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 1.3, "seed": 5, "top_p": 0.9, "presence_penalty": 0.5},
    {"temperature": 0.8, "seed": 6, "min_tokens": 5, "stop_token_ids": (0,)},
    {"temperature": 1.0, "seed": 7, "logprobs": 2},  # told, so not drafted
    {"temperature": 1.0, "seed": 8, "max_tokens": 24},  # brought to an end in time
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grammar")
    size = write_tokenizer(folder / "tokenizer.json")
    return write_llama(folder, vocab_size=size, bos_token_id=0, eos_token_id=0)


@pytest.mark.parametrize(
    "source",
    [SOURCES[0], pytest.param(SOURCES[1], marks=pytest.mark.slow)],
    ids=["schema", "regex"],
)
def test_drafts_change_no_answer_that_matches_a_grammar(
    folder: Path, source: GrammarSource
) -> None:
    params = [greedy(**{"max_tokens": 64, "logprobs": None, **mix}) for mix in MIXES]
    prompts = random_prompts([3, 40, 17, 9, 21, 5], 300)
    grammar = grammar_text(source)

    def run(core: EngineCore, **how: Any) -> list[Generated]:
        return generate(core, prompts, params, n=2, grammar=grammar, **how)

    plain = build(folder, num_speculative_tokens=0)
    wanted = run(plain)
    assert [each.error for each in wanted] == [None] * len(MIXES)
    assert plain.scheduler.stats().drafted == 0
    rng = random.Random(2)
    predictions = [edited(answer.tokens[0], i % 3, rng) for i, answer in enumerate(wanted)]
    for settings in ({}, {"speculate": "ngram"}, {"max_num_batched_tokens": 16, "block_size": 4}):
        core = build(folder, **settings)
        assert run(core, predictions=predictions) == wanted
        stats = core.scheduler.stats()
        assert stats.drafted > stats.accepted > 40
