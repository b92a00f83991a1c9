"""The three corpora as conversations: self-dialogue, GSM8K's training part, tinyshakespeare."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import ConfigError
from rosellm.rosetrainer.recipes.demo.skills.lexicon import RUDE, is_held_out
from rosellm.rosetrainer.recipes.demo.skills.source import Source

Message = dict[str, Any]
Example = dict[str, Any]

DIALOGUES = "corpora/self-dialogue/dialogues.jsonl.gz"
SHAKESPEARE = "corpora/tinyshakespeare/input.txt"
GSM8K = "prompts/gsm8k/train.jsonl"
VALID_SHARE = 50
"""One dialogue in so many is held out for validation."""

_CALCULATION = re.compile(r"<<[^>]*>>")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z' ]*[A-Za-z]")
_LINES = 6
_QUESTION_WORDS = 45
_STEPS = 3


@dataclass(frozen=True)
class Dialogue:
    topic: str
    turns: tuple[str, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether it is for validation: by its hash, so for good."""
        digest = hashlib.blake2b("\n".join(self.turns).encode(), digest_size=8).digest()
        return int.from_bytes(digest) % VALID_SHARE == 0


def read_dialogues(folder: Path) -> list[Dialogue]:
    """All of self-dialogue.

    Raises:
        ConfigError: it is not there.
    """
    rows = map(json.loads, gzip.decompress(_read(folder / DIALOGUES)).decode().splitlines())
    return [Dialogue(row["topic"], tuple(map(_cleaned, row["turns"]))) for row in rows]


def as_conversation(dialogue: Dialogue, start: int, with_topic: bool) -> Example:
    """A dialogue from its turn ``start`` on, the first speaker being the user.

    It ends with a turn of the assistant's, for only those are learnt.
    """
    turns = dialogue.turns[start:]
    turns = turns[: len(turns) // 2 * 2]
    system = {"role": "system", "content": f"Topic: {dialogue.topic.replace('_', ' ')}"}
    messages: list[Message] = [system] if with_topic else []
    roles = ("user", "assistant")
    messages += [{"role": roles[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return {"messages": messages}


def gsm8k(folder: Path) -> Iterator[Example]:
    """Short word problems with their worked answers, from the training part alone."""
    for line in _read(folder / GSM8K).decode().splitlines():
        row = json.loads(line)
        worked, _, result = _CALCULATION.sub("", row["answer"]).partition("\n####")
        question = row["question"].strip()
        if len(question.split()) <= _QUESTION_WORDS and worked.count("\n") < _STEPS:
            yield _pair(question, f"{worked.strip()}\nThe answer is {result.strip()}.")


def shakespeare(folder: Path, source: Source) -> Iterator[Example]:
    """Some lines of a play, to be continued with the next ones."""
    lines = plays(folder).splitlines()
    for at in range(0, len(lines) - 2 * _LINES, 2 * _LINES):
        start = "\n".join(lines[at : at + _LINES]).strip()
        rest = "\n".join(lines[at + _LINES : at + 2 * _LINES]).strip()
        ask = source.spoken("[Continue|Go on with|Continue this play|What comes next]:\n")
        yield _pair(ask + start, rest)


def plays(folder: Path) -> str:
    """The whole of tinyshakespeare."""
    return _read(folder / SHAKESPEARE).decode()


def corpus_words(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Words that people use, at least 12 times each, in a fixed order."""
    counts = Counter(
        word
        for dialogue in dialogues
        for turn in dialogue.turns
        for word in re.findall(r"\b[a-z]{3,11}\b", turn)
    )
    return tuple(
        sorted(
            word
            for word, count in counts.items()
            if count >= 12 and not is_held_out(word) and not RUDE.search(word)
        )
    )


def corpus_phrases(dialogues: Sequence[Dialogue]) -> tuple[str, ...]:
    """Short sentences that people wrote, letters only, in a fixed order."""
    phrases = (turn.rstrip(".!? ") for dialogue in dialogues for turn in dialogue.turns)
    fit = (each for each in phrases if 1 < len(each.split()) <= 8 and len(each) <= 48)
    return tuple(
        sorted({each for each in fit if _PLAIN.fullmatch(each) and not RUDE.search(each.lower())})
    )


def _pair(user: str, answer: str) -> Example:
    roles = (("user", user), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in roles]}


def _cleaned(turn: str) -> str:
    return " ".join(turn.split())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--corpora: {file}: {error.strerror}") from None
