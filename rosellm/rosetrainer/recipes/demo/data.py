"""Writes what the demo model is trained on, and the config to train it with, into one folder.

    python -m rosellm.rosetrainer.recipes.demo.data --corpora ../shared/data --out DIR
    rosellm train DIR/demo.toml

``train.jsonl`` holds everything, shuffled; ``train-late.jsonl`` what later stages of the training
take, in which weaker skills come more often, and all dialogues; ``valid.jsonl`` the dialogues that
are held out; ``valid-skills.jsonl`` questions that are held out; ``shakespeare.txt`` is for the
GPT-2 of ``gpt2-fixture.toml``. The same seed gives the same files, byte for byte, whatever the
number of workers.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rosellm.roseinfer.errors import ConfigError, RosellmError
from rosellm.rosetrainer.recipes.demo import corpora
from rosellm.rosetrainer.recipes.demo.corpora import Dialogue, Example, Message
from rosellm.rosetrainer.recipes.demo.overlap import benchmark_runs, overlaps, strings
from rosellm.rosetrainer.recipes.demo.skills.mix import NOVELTY, Stage, conversation
from rosellm.rosetrainer.recipes.demo.skills.source import Source

SHARD = 5000
"""Skill examples that are made from one seed."""
LATE = 5
"""There are so many times fewer of them for the end of the training."""
VALID_SKILLS = 1000
"""Skill examples for validation, of questions that are not trained on."""

_AFTER_SMALL_TALK = 0.05
_WITH_TOPIC = 0.5


@dataclass(frozen=True)
class Words:
    """What the generated examples take from the corpora."""

    words: tuple[str, ...]
    phrases: tuple[str, ...]
    openings: tuple[tuple[str, ...], ...]


def write_data(
    folder: Path, out: Path, seed: int, examples: int, dialogues: int, workers: int
) -> dict[str, int]:
    """Make and write everything. Returns how many documents there are of each kind.

    Args:
        examples: how many skill examples to generate.
        dialogues: how many dialogues to take at most; one counts twice, once in each role.

    Raises:
        ConfigError: a corpus is not there, or the output cannot be written.
    """
    every = corpora.read_dialogues(folder)
    held_out = [dialogue for dialogue in every if dialogue.is_held_out]
    known = [dialogue for dialogue in every if not dialogue.is_held_out]
    kept_out = benchmark_runs(folder)
    parts = {
        "dialogue": list(_lines(_dialogues(known, seed, dialogues), kept_out)),
        "gsm8k": list(_lines(corpora.gsm8k(folder), kept_out)),
        "shakespeare": list(_lines(corpora.shakespeare(folder, _source(seed, "play")), kept_out)),
        "skills": list(_skills(_words_of(known), seed, "early", examples, workers)),
    }
    train = [line for lines in parts.values() for line in lines]
    random.Random(f"{seed} order").shuffle(train)
    late = list(_skills(_words_of(known), seed, "late", examples // LATE, workers))
    late += _lines(_both_learned(known, seed), kept_out)
    late += (parts["gsm8k"] + parts["shakespeare"])[::2]
    random.Random(f"{seed} late order").shuffle(late)
    valid = [_line(corpora.as_conversation(each, 0, with_topic=True)) for each in held_out]
    fresh = Source(random.Random(f"{seed} valid"), fresh=True, novelty=NOVELTY)
    asked = [_line(conversation(fresh)) for _ in range(VALID_SKILLS)]
    _write(out / "train.jsonl", train)
    _write(out / "train-late.jsonl", late)
    _write(out / "valid.jsonl", valid)
    _write(out / "valid-skills.jsonl", asked)
    _write(out / "shakespeare.txt", corpora.plays(folder).splitlines())
    for name in (
        "demo.toml",
        "demo-late.toml",
        "demo-context.toml",
        "gpt2-fixture.toml",
        "template.jinja",
    ):
        _write(out / name, Path(__file__).with_name(name).read_text().splitlines())
    return {**{kind: len(lines) for kind, lines in parts.items()}, "valid": len(valid)}


def _dialogues(known: Sequence[Dialogue], seed: int, limit: int) -> Iterator[Example]:
    """Each one twice: in the second, the speakers have changed roles."""
    rng = random.Random(f"{seed} dialogues")
    both = [(dialogue, start) for dialogue in known for start in (0, 1)]
    for dialogue, start in rng.sample(both, min(limit, len(both))):
        yield corpora.as_conversation(dialogue, start, rng.random() < _WITH_TOPIC)


def _both_learned(known: Sequence[Dialogue], seed: int) -> Iterator[Example]:
    """Each one once; what either speaker says is learnt, for they are alike."""
    rng = random.Random(f"{seed} late dialogues")
    for dialogue in known:
        yield {**corpora.as_conversation(dialogue, 0, rng.random() < _WITH_TOPIC), "learn": "all"}


def _words_of(known: list[Dialogue]) -> Words:
    openings = tuple(each.turns[:4] for each in known[::4] if len(each.turns) >= 4)
    return Words(corpora.corpus_words(known), corpora.corpus_phrases(known), openings)


def _skills(words: Words, seed: int, stage: Stage, examples: int, workers: int) -> Iterator[str]:
    sizes = [min(SHARD, examples - start) for start in range(0, examples, SHARD)]
    make = partial(_shard, words, seed, stage)
    if workers <= 1:
        made: Iterable[list[str]] = map(make, enumerate(sizes))
        yield from (line for lines in made for line in lines)
        return
    with get_context("spawn").Pool(workers) as pool:
        for lines in pool.imap(make, enumerate(sizes)):
            yield from lines


def _shard(words: Words, seed: int, stage: Stage, shard: tuple[int, int]) -> list[str]:
    number, size = shard
    source = _source(seed, f"skills {number}" if stage == "early" else f"late {number}", words)
    return [_line(conversation(source, _opening(source, words), stage)) for _ in range(size)]


def _opening(source: Source, words: Words) -> tuple[Message, ...]:
    """Now and then some small talk, before a skill is asked for."""
    if not words.openings or not source.chance(_AFTER_SMALL_TALK):
        return ()
    turns = source.among(words.openings)[: source.among((2, 2, 4))]
    roles = ("user", "assistant")
    return tuple({"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns))


def _source(seed: int, use: str, words: Words | None = None) -> Source:
    rng = random.Random(f"{seed} {use}")
    if words is None:
        return Source(rng)
    return Source(rng, corpus_words=words.words, corpus_phrases=words.phrases)


def _lines(examples: Iterable[Example], kept_out: frozenset[tuple[str, ...]]) -> Iterator[str]:
    for example in examples:
        if example["messages"] and not overlaps(strings(example["messages"]), kept_out):
            yield _line(example)


def _line(example: Example) -> str:
    return json.dumps(example, ensure_ascii=False, separators=(",", ":"))


def _write(file: Path, lines: list[str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {file}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the demo model's training data.")
    parser.add_argument("--corpora", type=Path, required=True, help="folder with the corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=400_000, help="generated skill examples")
    parser.add_argument("--dialogues", type=int, default=12_000, help="dialogues at most")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    try:
        counts = write_data(
            options.corpora,
            options.out,
            options.seed,
            options.examples,
            options.dialogues,
            options.workers,
        )
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(" · ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
