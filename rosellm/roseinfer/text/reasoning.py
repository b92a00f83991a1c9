"""Takes the reasoning off an answer that begins with it.

Knows the markers of model families that put their reasoning between two of them, at the very
start of an answer. gpt-oss, which has channels instead, is read by ``harmony.py``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Parts


@dataclass(frozen=True)
class ReasoningFormat:
    """Two markers.

    Attributes:
        opened: whether answers begin inside, though nothing says so: the model leaves ``start``
            out, and no prompt ends with it.
    """

    start: str
    end: str
    opened: bool = False


FORMATS = {
    "think": ReasoningFormat("<think>", "</think>"),
    "deepseek_r1": ReasoningFormat("<think>", "</think>", opened=True),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "granite": ReasoningFormat("Here is my thought process:", "Here is my response:"),
    "command": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "seed_oss": ReasoningFormat("<seed:think>", "</seed:think>"),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
}
RECOGNISED = ("think", "mistral", "granite", "command", "seed_oss", "kimi")


def recognise(template: str) -> str | None:
    """The name of the format whose markers a chat template speaks of.

    >>> recognise("{{ content.split('</think>')[-1] }}")
    'think'
    """
    return next((name for name in RECOGNISED if FORMATS[name].end in template), None)


class Reasoning:
    """Splits an answer into its reasoning and the rest; white space round markers belongs to them.

    Args:
        opened: whether the prompt has already written the first marker.

    Attributes:
        span: first and last but one character of the text so far that are reasoning, markers
            included; None if there is none.
    """

    def __init__(self, format: ReasoningFormat, opened: bool) -> None:
        self._format = format
        self._state: Literal["before", "inside", "after"] = "inside" if opened else "before"
        self._fresh = True  # nothing but white space has come since the last marker
        self._repeats = opened  # whether the model may still write the first marker again
        self._pending = ""
        self._taken = 0
        self._end: int | None = None
        self._begun = opened

    @property
    def span(self) -> tuple[int, int] | None:
        if not self._begun:
            return None
        return 0, self._taken if self._end is None else self._end

    def feed(self, text: str) -> Parts:
        self._pending += text
        self._taken += len(text)
        if self._state == "before":
            self._look_for_start()
        reasoning = self._inside() if self._state == "inside" else ""
        return Parts(self._after() if self._state == "after" else "", reasoning)

    def flush(self) -> Parts:
        rest, self._pending = self._pending, ""
        if self._state == "inside":
            self._end = sys.maxsize  # what is still to come of the text was cut off by a stop
            return Parts(reasoning=rest.lstrip() if self._fresh else rest)
        return Parts("" if self._begun and self._fresh else rest)

    def _look_for_start(self) -> None:
        start, text = self._format.start, self._pending.lstrip()
        if text.startswith(start):
            self._pending, self._begun, self._state = text[len(start) :], True, "inside"
        elif not start.startswith(text):
            self._state, self._fresh = "after", False

    def _inside(self) -> str:
        if self._fresh and not self._skip_start():
            return ""
        found = first_of(self._pending, [self._format.end])
        if found is None:
            return self._take(_settled(self._pending, self._format.end))
        reasoning = self._take(found[0]).rstrip()
        self._take(len(self._format.end))
        self._end = self._taken - len(self._pending)
        self._state, self._fresh = "after", True
        return reasoning

    def _skip_start(self) -> bool:
        """Drop white space and, once, a marker that the prompt has written already. False: wait."""
        self._pending = self._pending.lstrip()
        start = self._format.start
        if self._repeats and self._pending.startswith(start):
            self._repeats = False
            self._pending = self._pending[len(start) :].lstrip()
        elif self._repeats and start.startswith(self._pending):
            return False
        self._fresh = not self._pending
        return not self._fresh

    def _after(self) -> str:
        if self._fresh:
            self._pending = self._pending.lstrip()
            self._fresh = not self._pending
        return self._take(len(self._pending))

    def _take(self, length: int) -> str:
        taken, self._pending = self._pending[:length], self._pending[length:]
        return taken


def _settled(text: str, marker: str) -> int:
    """Characters that are certain to stand before the white space that precedes a marker."""
    return len(text[: len(text) - begun(text, [marker])].rstrip())
