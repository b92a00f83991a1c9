"""Measures a model on the demo's skills and on dialogues that training never saw.

    python -m rosellm.rosetrainer.recipes.demo.evaluate MODEL --corpora ../shared/data

Answers are greedy, and made by the engine as a user has it (``rosellm.LLM``). The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.llm import LLM, SamplingParams
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.load import load_tokenizer
from rosellm.roseinfer.text.tokenizer import Tokenizer
from rosellm.rosetrainer.documents import chat_segments
from rosellm.rosetrainer.recipes.demo import corpora
from rosellm.rosetrainer.recipes.demo.corpora import Dialogue
from rosellm.rosetrainer.recipes.demo.skills.mix import (
    NOVELTY,
    SKILLS,
    evaluation,
    is_right,
    prompt,
)
from rosellm.rosetrainer.recipes.demo.skills.source import Source
from rosellm.rosetrainer.recipes.demo.skills.tools import is_valid_call
from rosellm.rosetrainer.recipes.demo.skills.turn import Turn
from rosellm.rosetrainer.recipes.demo.trigram import Trigram

EVALUATION_SEED = 20_000
VALID_CALL = "tool call: name right, arguments valid"
_MAX_TOKENS = 160


class Subject:
    """The model that is measured, with its own tokenizer and template."""

    def __init__(self, model: str) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(model)
        self.template = ChatTemplate(self.tokenizer.chat_template, self.tokenizer.special_tokens)
        self.llm = LLM(model)

    def answers(self, turns: Sequence[Turn]) -> list[str]:
        """Greedy answers."""
        prompts = [self._rendered(turn) for turn in turns]
        asked = SamplingParams(temperature=0, max_tokens=_MAX_TOKENS)
        return [made.text for made in self.llm.generate(prompts, asked)]

    def _rendered(self, turn: Turn) -> str:
        example = prompt(turn)
        return self.template.render(example["messages"], tools=example.get("tools"))

    def encoded(self, dialogue: Dialogue, with_topic: bool = True) -> tuple[list[int], list[bool]]:
        """Token ids of a dialogue, and which of them the assistant says."""
        messages = corpora.as_conversation(dialogue, 0, with_topic)["messages"]
        ids: list[int] = []
        said: list[bool] = []
        for segment in chat_segments(messages, None, self.template):
            found = self.tokenizer.encode(segment.text)
            ids += found
            said += [segment.learn] * len(found)
        return ids, said


def skill_rates(subject: Subject, count: int, novelty: float, show: int) -> dict[str, float]:
    """Share of right answers to so many new questions of each skill."""
    rates: dict[str, float] = {}
    for skill in SKILLS:
        rng = random.Random(f"{EVALUATION_SEED} {skill}")
        source = Source(rng, fresh=True, novelty=novelty)
        turns = list(evaluation(skill, source, count))
        answers = subject.answers(turns)
        pairs = list(zip(turns, answers, strict=True))
        rates[skill] = sum(is_right(turn, answer) for turn, answer in pairs) / count
        if skill == "tool call":
            rates[VALID_CALL] = sum(is_valid_call(turn, answer) for turn, answer in pairs) / count
        _show_wrong(skill, pairs, show)
    return rates


def _show_wrong(skill: str, pairs: Iterable[tuple[Turn, str]], show: int) -> None:
    wrong = ((turn, answer) for turn, answer in pairs if not is_right(turn, answer))
    for turn, answer in islice(wrong, show):
        wanted = json.dumps(turn.call) if turn.call else turn.answer
        print(f"{skill}: {turn.user!r}\n  wanted {wanted!r}\n  got    {answer!r}", file=sys.stderr)


def perplexities(subject: Subject, folder: Path, limit: int) -> dict[str, float]:
    """Per token of the assistant's turns, on held-out dialogues, beside the 3-gram's."""
    dialogues = corpora.read_dialogues(folder)
    known = (subject.encoded(each)[0] for each in dialogues if not each.is_held_out)
    baseline = Trigram(known, subject.tokenizer.vocab_size)
    held_out = [each for each in dialogues if each.is_held_out][: limit or None]
    encoded = [subject.encoded(each) for each in held_out]
    scored = subject.llm.score([ids for ids, _ in encoded])
    ours = chain.from_iterable(
        _said(each.logprobs, said) for each, (_, said) in zip(scored, encoded, strict=True)
    )
    theirs = chain.from_iterable(_said(baseline.logprobs(ids), said) for ids, said in encoded)
    return {
        "perplexity": _perplexity(list(ours)),
        "trigram_perplexity": _perplexity(list(theirs)),
        "validation_dialogues": len(held_out),
        "validation_tokens": sum(sum(said) for _, said in encoded),
    }


def _said(logprobs: Sequence[float | None], said: Sequence[bool]) -> Iterator[float]:
    for logprob, by_assistant in zip(logprobs, said, strict=True):
        if by_assistant and logprob is not None:
            yield logprob


def _perplexity(logprobs: Sequence[float]) -> float:
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def print_table(results: dict[str, Any]) -> None:
    print(f"{'':40} new questions · half of phrases and words new too")
    for skill, rate in results["skills"].items():
        print(f"{skill:40} {rate:13.1%} {results['novel'][skill]:13.1%}")
    if "perplexity" in results:
        print(f"{'perplexity on held-out dialogues':40} {results['perplexity']:7.2f}")
        print(f"{'  of a 3-gram on the same tokens':40} {results['trigram_perplexity']:7.2f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the demo model.")
    parser.add_argument("model", help="folder of an exported model")
    parser.add_argument("--prompts", type=int, default=200, help="new questions for each skill")
    parser.add_argument("--corpora", type=Path, help="folder with the corpora, for perplexity")
    parser.add_argument("--dialogues", type=int, default=0, help="held-out ones; 0: all")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to show for each skill")
    options = parser.parse_args(arguments)
    try:
        subject = Subject(options.model)
        results: dict[str, Any] = {"model": options.model, "prompts": options.prompts}
        results["skills"] = skill_rates(subject, options.prompts, 0, options.show)
        results["novel"] = skill_rates(subject, options.prompts, NOVELTY, options.show)
        if options.corpora:
            results |= perplexities(subject, options.corpora, options.dialogues)
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(results)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
