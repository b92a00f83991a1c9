"""Text of which more may come, for readers that are generators.

A reader yields where the text is too short to go on, and is resumed when there is more or when
nothing will come any more; so it takes the same way however the text was cut. Places are kept here
and not in readers, since text that nobody goes back to is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Waits = Generator[None, None, T]
"""What a reader is, and what it returns in the end."""

SPACE = " \t\n\r"


class NoCall(ValueError):
    """What stands here is no call."""


class Incoming:
    """Text, and a place in it.

    Attributes:
        place: of the character that is next.
        keep: the first place that may still be gone back to.
        last: whether nothing will follow.
    """

    def __init__(self) -> None:
        self.text = ""
        self.place = 0
        self.keep = 0
        self.last = False

    @property
    def rest(self) -> str:
        return self.text[self.place :]

    @property
    def at_end(self) -> bool:
        return self.last and self.place == len(self.text)

    def feed(self, text: str) -> None:
        self.text = self.text[self.keep :] + text
        self.place -= self.keep
        self.keep = 0

    def drop(self, length: int) -> None:
        """Go past so many characters, and never back."""
        self.place += length
        self.keep = self.place

    def peek(self, skip: str = "") -> Waits[str]:
        """The next character that is none of ``skip``; empty at the end. Goes up to it."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in skip:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if self.last:
                return ""
            yield

    def starts(self, literal: str) -> Waits[bool]:
        """Go past a literal, if it comes next."""
        while not self.text.startswith(literal, self.place):
            if self.last or not literal.startswith(self._next(len(literal))):
                return False
            yield
        self.place += len(literal)
        return True

    def expect(self, literal: str) -> Waits[None]:
        """Go past a literal; the end of the text may cut it off.

        Raises:
            NoCall: something else comes next.
        """
        if (yield from self.starts(literal)):
            return
        if not literal.startswith(self._next(len(literal))):
            raise NoCall(f"no {literal}")
        self.place = len(self.text)

    def run(self, pattern: re.Pattern[str], say: Callable[[str], None] | None = None) -> Waits[str]:
        """Go past characters as long as a pattern of one or more matches; say them as they come."""
        taken: list[str] = []
        while True:
            found = pattern.match(self.text, self.place)
            if found is not None:
                taken.append(found[0])
                self.place = found.end()
                if say is not None:
                    say(found[0])
            if self.place < len(self.text) or self.last:
                return "".join(taken)
            yield

    def _next(self, length: int) -> str:
        return self.text[self.place : self.place + length]
