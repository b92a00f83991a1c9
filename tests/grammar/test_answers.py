"""An engine whose answers match their grammars, with everything else that a request may ask for."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Abort
from rosellm.roseinfer.text.grammar_source import (
    Choice,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    symbol,
)
from rosellm.roseinfer.text.tokenizer import Tokenizer
from tests.grammar.conftest import END, add, answers

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["alpha", "beta"]},
    },
    "required": ["name", "age", "tags", "kind"],
    "additionalProperties": False,
}
SCHEMA = JsonSchema(PERSON)


def check(text: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("room", [41, 60, 150])
def test_every_answer_fits_its_schema_whatever_room_it_has(
    core: EngineCore, tokenizer: Tokenizer, room: int
) -> None:
    found = answers(core, *(add(id, SCHEMA, max_tokens=room) for id in range(8)))
    for text in found.values():
        check(text.read(tokenizer), PERSON)
        assert (text.finish, text.complete) == ("stop", True)
        assert len(text.tokens) <= room
    assert len({text.read(tokenizer) for text in found.values()}) > 1


@pytest.mark.parametrize(
    ("schema", "room"),
    [
        ({"type": "object"}, 8),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, 12),
        ({"type": "string"}, 6),
        ({"enum": ["one", "two", 3, None]}, 8),
        ({"type": "string", "minLength": 5}, 10),
        ({"anyOf": [{"type": "boolean"}, {"type": "array", "minItems": 2}]}, 8),
        (
            {
                "type": "object",
                "properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}},
                "required": ["v"],
                "additionalProperties": False,
            },
            20,
        ),
    ],
)
def test_little_room_is_enough_for_what_is_short(
    core: EngineCore, tokenizer: Tokenizer, schema: dict[str, Any], room: int
) -> None:
    for text in answers(
        core, *(add(id, JsonSchema(schema), max_tokens=room) for id in range(6))
    ).values():
        check(text.read(tokenizer), schema)


def test_what_cannot_be_closed_ends_by_its_length_and_is_counted(core: EngineCore) -> None:
    before = core.scheduler.stats().incomplete
    long = JsonSchema({"type": "string", "minLength": 200})
    (text,) = answers(core, add(1, long, max_tokens=5)).values()
    assert (text.finish, len(text.tokens), text.complete) == ("length", 5, False)
    assert core.scheduler.stats().incomplete == before + 1


def test_a_free_text_that_is_cut_is_no_complete_answer(core: EngineCore) -> None:
    (text,) = answers(
        core, add(1, Regex("(.|\n)*"), max_tokens=6, logit_bias=((END, -100.0),))
    ).values()
    assert text.finish == "length"
    assert 3 <= len(text.tokens) <= 6  # fewer where a character would be cut


@pytest.mark.parametrize(
    ("source", "pattern"),
    [
        (Regex(r"[A-Z]{3}-[0-9]{2}"), r"[A-Z]{3}-[0-9]{2}"),
        (Choice(("red", "green", "dark blue")), r"red|green|dark blue"),
        (Lark('start: "x" /[0-9]/ ("," /[0-9]/)*'), r"x[0-9](,[0-9])*"),
        (JsonObject(), r"\{.*\}"),
    ],
)
def test_other_grammars(core: EngineCore, tokenizer: Tokenizer, source: Any, pattern: str) -> None:
    for text in answers(core, *(add(id, source) for id in range(4))).values():
        assert re.fullmatch(pattern, text.read(tokenizer), re.DOTALL), text.read(tokenizer)


def test_a_choice_does_not_depend_on_what_else_is_running(core: EngineCore) -> None:
    adds = [add(id, SCHEMA if id % 2 else None, logprobs=2, max_tokens=44 + id) for id in range(6)]
    together = answers(core, *adds)
    for each in adds:
        assert answers(core, each) == {key: together[key] for key in together if key[0] == each.id}


def test_it_works_with_everything_else(core: EngineCore, tokenizer: Tokenizer) -> None:
    one = add(
        9,
        SCHEMA,
        n=3,
        max_tokens=80,
        temperature=1.5,
        top_p=0.9,
        top_k=50,
        min_p=0.001,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        logprobs=3,
        min_tokens=70,
        logit_bias=((5, 100.0), (END, 100.0)),
    )
    found = answers(core, one)
    for text in found.values():
        check(text.read(tokenizer), PERSON)
        assert len(text.logprobs) == len(text.tokens)
    assert len({text.read(tokenizer) for text in found.values()}) > 1


def test_log_probabilities_are_those_of_the_tokens_that_came(core: EngineCore) -> None:
    """Of tokens put in the place of others too: a request for all of them says the same."""
    (text,) = answers(core, add(3, SCHEMA, max_tokens=42, logprobs=400)).values()
    for token, scores in zip(text.tokens, text.logprobs, strict=True):
        assert scores.chosen == scores.top[scores.top_ids.index(token)]


def test_a_stop_token_comes_only_where_the_answer_may_end(
    core: EngineCore, tokenizer: Tokenizer
) -> None:
    certain = ((END, 1000.0),)
    (text,) = answers(core, add(1, SCHEMA, logit_bias=certain, max_tokens=100)).values()
    check(text.read(tokenizer), PERSON)
    (digits,) = answers(core, add(1, Regex("[0-9]+"), logit_bias=certain)).values()
    assert (digits.finish, digits.complete, len(digits.tokens)) == ("stop", False, 2)
    (more,) = answers(core, add(1, Regex("[0-9]+"), logit_bias=certain, min_tokens=4)).values()
    assert (more.finish, len(more.tokens)) == ("stop", 5)


def test_it_goes_on_where_it_was_interrupted(core: EngineCore) -> None:
    whole = answers(core, add(4, SCHEMA, max_tokens=60))[4, 0]
    for cut in (1, 20, 59):
        rest = answers(core, add(4, SCHEMA, max_tokens=60, generated=[whole.tokens[:cut]]))[4, 0]
        assert whole.tokens[:cut] + rest.tokens == whole.tokens


def test_what_does_not_match_cannot_go_on(core: EngineCore) -> None:
    (text,) = answers(core, add(1, SCHEMA, generated=[[9, 9, 9]])).values()
    assert text.error is not None
    assert "does not match" in text.error.message


def test_a_bad_grammar_is_one_requests_error(core: EngineCore, tokenizer: Tokenizer) -> None:
    found = answers(
        core, add(1, Lark("start: nothing")), add(2, SCHEMA, max_tokens=60), add(3, None)
    )
    assert found[1, 0].error is not None
    assert found[1, 0].error.status == 400
    check(found[2, 0].read(tokenizer), PERSON)
    assert found[3, 0].finish in ("stop", "length")


def test_one_that_waits_for_its_grammar_holds_nothing_and_can_be_aborted(core: EngineCore) -> None:
    large = JsonSchema({"enum": [f"value-{number}" for number in range(3000)]})
    core.add(add(77, large, n=2))
    stats = core.scheduler.stats()
    assert (stats.waiting, stats.waiting_grammar, stats.blocks_used) == (2, 2, 0)
    core.control(Abort([77]))
    rows = core.step().rows
    assert [(row.id, row.finish, row.last) for row in rows] == [(77, "abort", True)]
    assert not core.has_work
    core.scheduler.check()


def test_a_special_token_may_be_part_of_an_answer(core: EngineCore, tokenizer: Tokenizer) -> None:
    grammar = Lark(f'start: "a" {symbol(END)} "b"')
    (text,) = answers(core, add(1, grammar, stop_token_ids=())).values()
    assert END in text.tokens
    assert text.read(tokenizer) == "a<|endoftext|>b"


def test_an_end_that_a_rule_of_few_tokens_forbids_costs_nothing_but_the_end(
    core: EngineCore,
) -> None:
    """The library looks at such a rule only when it gets there; the request goes on."""
    grammar = Lark('start: word ";" word ";"\nword[max_tokens=2]: /[a-z]{3,9}/')
    for text in answers(core, *(add(id, grammar, max_tokens=9) for id in range(12))).values():
        assert text.error is None
        assert text.finish in ("stop", "length")
