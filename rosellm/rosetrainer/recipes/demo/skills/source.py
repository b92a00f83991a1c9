"""Where a generated example gets its chance from: phrases, words and values from one seed.

A phrase is written with alternatives, ``[please |]repeat [this|these words]: {x}``, of which one
is taken at each place, and with slots in braces.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from rosellm.rosetrainer.recipes.demo.skills import lexicon
from rosellm.rosetrainer.recipes.demo.skills.lexicon import RUDE, half, is_held_out

T = TypeVar("T")
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_PARTS = re.compile(r"(\{\w+\})")


@dataclass(frozen=True)
class Phrases:
    """Ways to say something: those to learn from, and those that only an evaluation uses."""

    train: tuple[str, ...]
    held_out: tuple[str, ...] = ()


def phrases(train: str, held_out: str = "") -> Phrases:
    """One phrase a line; a line break within one is written backslash, n."""
    return Phrases(_lines(train), _lines(held_out))


@dataclass
class Source:
    """Random words and phrases.

    Attributes:
        fresh: for evaluation: what it asks is in no training example.
        novelty: share of phrases and of words that no training example uses at all.
        corpus_words: more words, from texts that are trained on.
        corpus_phrases: short sentences, from there too.
    """

    rng: random.Random
    fresh: bool = False
    novelty: float = 0.0
    corpus_words: Sequence[str] = ()
    corpus_phrases: Sequence[str] = ()
    _lists: dict[Sequence[str], tuple[tuple[str, ...], tuple[str, ...]]] = field(
        default_factory=dict
    )

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def is_novel(self) -> bool:
        """Whether the next phrase or word is one that is not trained on."""
        return self.novelty > 0 and self.chance(self.novelty)

    def among(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.random() * len(choices))]

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.rng.random() * (high - low + 1))

    def phrase(self, ways: Phrases) -> str:
        """One of the ways to say something, its slots still open."""
        held_out = ways.held_out and self.is_novel()
        return self.spoken(self.among(ways.held_out if held_out else ways.train))

    def spoken(self, template: str) -> str:
        """One alternative at each place of a template."""
        while "[" in template:
            template = _INNERMOST.sub(self._alternative, template)
        return template

    def _alternative(self, match: re.Match[str]) -> str:
        choices: list[str] = match.group(1).split("|")
        return self.among(choices)

    def of(self, words: tuple[str, ...]) -> str:
        """A word of a list."""
        if words not in self._lists:
            self._lists[words] = (half(words, False), half(words, True))
        known, new = self._lists[words]
        return self.among(new if new and self.is_novel() else known)

    def word(self) -> str:
        """Any lower-case word: common, from the corpora, or made up."""
        kind = self.rng.random()
        if kind < 0.3 and self.corpus_words:
            return self._known(self.corpus_words)
        if kind < 0.7:
            return self.of(lexicon.COMMON_WORDS)
        return self.made_up()

    def _known(self, words: Sequence[str]) -> str:
        while is_held_out(word := self.among(words)):
            pass
        return word

    def made_up(self) -> str:
        """A word that may not exist, of two or three syllables or one long one."""
        wanted = self.is_novel()
        while True:
            word = "".join(self._syllable() for _ in range(self.among((1, 2, 2, 2, 3))))
            fits = 3 <= len(word) <= 10 and is_held_out(word) == wanted
            if fits and not RUDE.search(word):
                return word

    def _syllable(self) -> str:
        codas = lexicon.CODAS
        return self.among(lexicon.ONSETS) + self.among(lexicon.VOWELS) + self.among(codas)

    def name(self) -> str:
        """A first name; one in five is made up, so that a name is known by its place."""
        return self.made_up().capitalize() if self.chance(0.2) else self.of(lexicon.FIRST_NAMES)

    def city(self) -> str:
        known = tuple(lexicon.COUNTRY_OF)
        return self.made_up().capitalize() if self.chance(0.15) else self.of(known)

    def sentence_word(self, slot: str) -> str:
        """A word for a slot of a sentence: an animal, a thing, a place."""
        return self.of(_SENTENCE_WORDS[slot])

    def sentence(self) -> str:
        """A short plain sentence without its final stop."""
        if self.corpus_phrases and self.chance(0.4):
            return self.among(self.corpus_phrases)
        said = self.spoken(self.among(_SENTENCES))
        return fill(said, {slot: self.of(words) for slot, words in _SENTENCE_WORDS.items()})


def fill(template: str, values: dict[str, str]) -> str:
    """Put values into the slots of a phrase."""
    return "".join(_filled(part, values) for part in _parts(template))


@cache
def _parts(template: str) -> tuple[str, ...]:
    return tuple(_PARTS.split(template))


def _filled(part: str, values: dict[str, str]) -> str:
    return values.get(part[1:-1], part) if part[:1] == "{" else part


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip().replace("\\n", "\n") for line in text.strip().splitlines())


_SENTENCE_WORDS = {
    "adj": lexicon.ADJECTIVES,
    "adj2": lexicon.ADJECTIVES,
    "animal": lexicon.ANIMALS,
    "thing": lexicon.THINGS,
    "thing2": lexicon.THINGS,
    "place": lexicon.PLACES,
    "food": lexicon.FOODS,
    "verb": lexicon.VERBS,
    "name": lexicon.FIRST_NAMES,
    "colour": lexicon.COLOURS,
    "job": lexicon.JOBS,
}
_SENTENCES = (
    "The {adj} {animal} {verb} the {thing}",
    "the {animal} {verb} a {adj} {thing}",
    "My {thing} is {colour}",
    "{name} {verb} the {adj} {thing}",
    "I [like|love|want|see] the {colour} {thing}",
    "We [walk|drive|go] to the {place} [today|tomorrow|now|]",
    "A {adj} {food} and a {adj2} {thing}",
    "the {thing} and the {thing2}",
    "There is a {animal} in the {place}",
    "{name} and the {adj} {animal}",
    "This {food} is very {adj}",
    "Where is my {adj} {thing}",
    "[he|she|nobody] {verb} {food} [at|near] the {place}",
    "{adj} {adj2} {animal}",
)
