"""All skills with their shares, conversations made of them, and what counts as a right answer.

Every question belongs for good, by its hash, to training or to evaluation: what a model is asked
in an evaluation was in none of its training examples, whatever seeds the two had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

from rosellm.rosetrainer.recipes.demo.skills import numbers, structure, talk, tools, words
from rosellm.rosetrainer.recipes.demo.skills.source import Source
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn

Message = dict[str, Any]
Example = dict[str, Any]
Stage = Literal["early", "late"]

EVALUATION_SHARE = 16
"""One question in so many is kept for evaluation."""
NOVELTY = 0.5
"""Share of the phrases and words that are new as well, in the harder evaluation."""


@dataclass(frozen=True)
class Skill:
    """A maker of turns, and its share of the training examples.

    Attributes:
        early, late: the share in the bulk of the training, and at its end, when what is still
            weak comes more often.
    """

    make: Callable[[Source], Turn]
    early: float
    late: float


SKILLS = {
    "greeting": Skill(talk.greeting, 5, 12),
    "identity": Skill(talk.identity, 6, 34),
    "copy": Skill(words.copying, 14, 14),
    "spell": Skill(words.spelling, 7, 14),
    "upper case": Skill(words.upper, 10, 40),
    "lower case": Skill(words.lower, 4, 6),
    "sum": Skill(numbers.adding, 13, 14),
    "larger sum": Skill(numbers.larger_sum, 3, 6),
    "difference": Skill(numbers.subtracting, 3, 10),
    "name": Skill(words.naming, 7, 8),
    "json": Skill(structure.two_fields, 12, 14),
    "json, one or three fields": Skill(structure.other_fields, 3, 4),
    "tool call": Skill(tools.calling, 14, 36),
    "tools unused": Skill(tools.not_calling, 2, 6),
    "fact": Skill(talk.fact, 3, 6),
    "does not know": Skill(talk.unknown, 3, 5),
}
_MAKERS = [skill.make for skill in SKILLS.values()]
WEIGHTS = {
    "early": [skill.early for skill in SKILLS.values()],
    "late": [skill.late for skill in SKILLS.values()],
}
_MORE_CALLS = (0, 1, 2, 3)
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a [helpful|kind|friendly|small|good] [assistant|model|chatbot].",
    "You are rosellm's demo model.",
    "[Answer|Reply] [briefly|shortly|in one line|politely|with care].",
    "Be [brief|kind|helpful|short|polite|exact].",
    "You [help|assist] [people|the user|users]. [Be brief.|Be exact.|]",
)


def is_for_evaluation(user: str) -> bool:
    """Whether a question, as it is typed, is kept for evaluation."""
    return crc32(f"question {user}".encode()) % EVALUATION_SHARE == 0


def draw(make: Callable[[Source], Turn], source: Source) -> Turn:
    """A turn whose question is on the source's side: new for an evaluation, else to learn."""
    while is_for_evaluation((turn := make(source)).user) != source.fresh:
        pass
    return turn


def evaluation(skill: str, source: Source, count: int) -> Iterator[Turn]:
    """So many different questions of a skill that no training example has."""
    seen: set[str] = set()
    while len(seen) < count:
        turn = draw(SKILLS[skill].make, source)
        if turn.user not in seen:
            seen.add(turn.user)
            yield turn


def conversation(
    source: Source, start: tuple[Message, ...] = (), stage: Stage = "early"
) -> Example:
    """A training example: one question or a few, or some for the same tools."""
    turns = _turns(source, stage)
    messages: list[Message] = [*start]
    if not start and source.chance(0.12):
        prompt = source.spoken(source.among(_SYSTEM_PROMPTS)).strip()
        messages.append({"role": "system", "content": prompt})
    offered: tuple[dict[str, Any], ...] = ()
    for turn in turns:
        offered = offered or turn.tools
        messages += asked_and_answered(turn)
        if turn.call is not None and source.chance(0.3):
            messages += _told(source)
    example: Example = {"messages": messages}
    return {**example, "tools": list(offered)} if offered else example


def prompt(turn: Turn) -> Example:
    """What a model is asked, as a conversation."""
    example: Example = {"messages": [{"role": "user", "content": turn.user}]}
    return {**example, "tools": list(turn.tools)} if turn.tools else example


def asked_and_answered(turn: Turn) -> list[Message]:
    answer: Message = {"role": "assistant", "content": turn.answer}
    if turn.call is not None:
        answer["tool_calls"] = [{"type": "function", "function": turn.call}]
    return [{"role": "user", "content": turn.user}, answer]


def is_right(turn: Turn, answer: str) -> bool:
    """Whether a model's whole answer is a right one."""
    answer = answer.strip()
    if turn.kind == "text":
        return answer in (turn.answer.strip(), *turn.others)
    if turn.kind == "json":
        return _same_json(answer, json.loads(turn.answer))
    return tools.called(answer) == turn.call


def _same_json(text: str, wanted: Any) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return bool(found == wanted)


def _turns(source: Source, stage: Stage) -> list[Turn]:
    count = source.rng.choices((1, 2, 3), (0.6, 0.28, 0.12))[0]
    turns = [_any_turn(source, stage) for _ in range(count)]
    with_tools = [turn for turn in turns if turn.tools]
    if with_tools:  # another question might be one for the tools
        turns = [with_tools[0], *_more_calls(with_tools[0], source)]
    if count > 1 and source.chance(0.3):
        turns = [draw(talk.greeting, source), *turns[-2:]]
    return turns


def _more_calls(turn: Turn, source: Source) -> list[Turn]:
    """More requests for the same tools: their description, which is long, then serves for all."""
    again = turn.again
    if again is None:
        return []
    return [draw(lambda _source: again(), source) for _ in range(source.among(_MORE_CALLS))]


def _any_turn(source: Source, stage: Stage) -> Turn:
    return draw(source.rng.choices(_MAKERS, WEIGHTS[stage])[0], source)


def _told(source: Source) -> list[Message]:
    result, answer = tools.result_of(source)
    return [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
