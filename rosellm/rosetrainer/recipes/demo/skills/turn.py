"""One question and its answer, what counts as right, and how people really type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rosellm.rosetrainer.recipes.demo.skills.source import Phrases, Source, fill

Kind = Literal["text", "json", "call"]


@dataclass(frozen=True)
class Turn:
    """A user's message and what the assistant says to it.

    Attributes:
        answer: the text of the answer; of a tool call, empty.
        others: answers that are as right as this one.
        kind: how an answer is compared: as text, as a JSON value or as a tool call.
        tools: OpenAI's tool objects that are offered.
        call: name and arguments of the tool call that is the answer.
        again: makes another request for the same tools.
    """

    user: str
    answer: str
    others: tuple[str, ...] = ()
    kind: Kind = "text"
    tools: tuple[dict[str, Any], ...] = ()
    call: dict[str, Any] | None = None
    again: Callable[[], Turn] | None = None


def ask(source: Source, ways: Phrases, /, typos: bool = False, **values: str) -> str:
    """A way to say something, typed as people do, with its slots filled."""
    said = _polite(source, typed(source, source.phrase(ways), typos))
    return fill(said, values).strip()


def typed(source: Source, text: str, typos: bool = False) -> str:
    """Other capitals, a final mark too few or too many, now and then two letters swapped."""
    style = source.rng.random()
    if style < 0.35:
        text = text[:1].upper() + text[1:]
    elif style < 0.7:
        text = text[:1].lower() + text[1:]
    elif style < 0.8:
        text = text.lower()
    elif style < 0.83 and "{" not in text:
        text = text.upper()
    if text[-1:] in ".?!" and source.chance(0.3):
        text = text[:-1]
    elif text[-1:].isalpha() and source.chance(0.15):
        text += source.among("!.?.")
    return _swapped(source, text) if typos and "{" not in text and source.chance(0.08) else text


def quoted(source: Source, text: str) -> str:
    """What a request is about, set off from it or not."""
    left, right = source.among(_QUOTES)
    return f"{left}{text}{right}"


_QUOTES = (("", ""), ("", ""), ("", ""), ("", ""), ('"', '"'), ('"', '"'), ("'", "'"), ("“", "”"))


def _polite(source: Source, text: str) -> str:
    if "{" not in text or not source.chance(0.12):
        return text
    opening = source.spoken("[hi|hello|hey|ok|now|please|thanks|hi there|good|so][,|!|.|] ")
    return source.among((opening, opening.capitalize())) + text


def _swapped(source: Source, text: str) -> str:
    at = source.number(1, max(1, len(text) - 3))
    pair = text[at : at + 2]
    return text[:at] + pair[::-1] + text[at + 2 :] if pair.isalpha() else text
