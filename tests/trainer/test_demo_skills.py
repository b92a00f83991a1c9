"""The demo's generated skills: answers that their own judges accept, and an evaluation that is
new to whoever learned from them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.rosetrainer.documents import chat_segments
from rosellm.rosetrainer.recipes import demo
from rosellm.rosetrainer.recipes.demo.overlap import benchmark_runs, overlaps, strings
from rosellm.rosetrainer.recipes.demo.skills.mix import (
    SKILLS,
    asked_and_answered,
    conversation,
    draw,
    evaluation,
    is_for_evaluation,
    is_right,
)
from rosellm.rosetrainer.recipes.demo.skills.source import Source
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn

TEMPLATE = Path(str(demo.__file__)).with_name("template.jinja")


def turns(skill: str, count: int = 60) -> list[Turn]:
    source = Source(random.Random(f"test {skill}"))
    return [draw(SKILLS[skill].make, source) for _ in range(count)]


def said(turn: Turn) -> str:
    """What a model that answers rightly writes."""
    if turn.call is None:
        return turn.answer
    return f"<tool_call>\n{json.dumps(turn.call)}\n</tool_call>"


@pytest.mark.parametrize("skill", SKILLS)
def test_an_answer_is_right_and_another_one_wrong(skill: str) -> None:
    made = turns(skill)
    assert all(is_right(turn, said(turn)) for turn in made)
    assert not any(is_right(turn, "something else") for turn in made)
    assert len({turn.user for turn in made}) > 20


def test_sums_are_right() -> None:
    for turn in turns("sum", 200):
        left, _, result = turn.answer.rpartition("=")
        first, second = map(int, left.split("+"))
        assert first + second == int(result)


def test_calls_name_an_offered_tool_and_its_parameters() -> None:
    for turn in turns("tool call", 200):
        assert turn.call is not None
        offered = {tool["function"]["name"]: tool["function"] for tool in turn.tools}
        parameters = offered[turn.call["name"]]["parameters"]
        given = turn.call["arguments"]
        assert set(parameters.get("required", [])) <= set(given) <= set(parameters["properties"])


def test_a_seed_says_all() -> None:
    def made(seed: int) -> list[str]:
        source = Source(random.Random(seed))
        return [json.dumps(conversation(source)) for _ in range(100)]

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("skill", SKILLS)
def test_an_evaluation_asks_what_was_not_trained_on(skill: str) -> None:
    fresh = list(evaluation(skill, Source(random.Random("fresh"), fresh=True, novelty=0.5), 40))
    assert all(is_for_evaluation(turn.user) for turn in fresh)
    assert not any(is_for_evaluation(turn.user) for turn in turns(skill, 100))


def test_only_answers_are_learned() -> None:
    """Through the recipe's own template, tools and calls included."""
    template = ChatTemplate(TEMPLATE.read_text(), {"eos_token": "<|endoftext|>"})
    for turn in turns("tool call", 10) + turns("copy", 10):
        segments = chat_segments(asked_and_answered(turn), list(turn.tools) or None, template)
        learned = "".join(each.text for each in segments if each.learn)
        assert turn.user not in learned or turn.user in turn.answer
        answer = json.dumps(turn.call["name"]) if turn.call else turn.answer
        assert answer in learned
        assert learned.rstrip().endswith("<|im_end|>")


def test_benchmarks_are_kept_out(shared_data: Path) -> None:
    kept_out = benchmark_runs(shared_data)
    assert len(kept_out) > 10_000
    source = Source(random.Random("overlap"))
    for _ in range(500):
        assert not overlaps(strings(conversation(source)), kept_out)
    [first] = (shared_data / "prompts/gsm8k/test.jsonl").read_text().splitlines()[:1]
    assert overlaps(strings(json.loads(first)), kept_out)
