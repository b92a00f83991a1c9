"""Ends a text at the first stop string, however the text arrives.

An Aho-Corasick automaton (Aho and Corasick, 1975) over the stop strings: its
state after a text is the longest suffix of the text that begins a stop string,
which is exactly what has to be held back. Each character is looked at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class _State:
    """A prefix of some stop string, ``depth`` characters long."""

    __slots__ = ("children", "depth", "fallback", "match")

    def __init__(self, depth: int) -> None:
        self.children: dict[str, _State] = {}
        self.depth = depth
        self.fallback: _State | None = None  # the longest proper suffix that is a state
        self.match: str | None = None  # the longest stop string that ends here


class StopFilter:
    """Passes text on up to the first stop string.

    The match that completes first wins; of those that complete together, the one that starts
    first. What comes out does not depend on how the text was cut into pieces.

    Args:
        stops: the stop strings, none of them empty.
        include: pass on the matched stop string too.

    Attributes:
        matched: the stop string that was found, or None.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self.matched: str | None = None
        self._include = include
        self._root = self._state = _automaton(stops)
        self._held = ""

    def feed(self, text: str) -> str:
        """Take some text; return what cannot be part of a stop string, nothing after a match."""
        if self.matched is not None:
            return ""
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            self._state = _step(self._state, char)
            if self._state.match is not None:
                return self._finish(pending[:end], self._state.match)
        safe = len(pending) - self._state.depth
        self._held = pending[safe:]
        return pending[:safe]

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held, self._state = self._held, "", self._root
        return held

    def _finish(self, text: str, match: str) -> str:
        self.matched, self._held = match, ""
        return text if self._include else text[: -len(match)]


def _step(state: _State, char: str) -> _State:
    while char not in state.children:
        if state.fallback is None:
            return state
        state = state.fallback
    return state.children[char]


def _automaton(stops: Sequence[str]) -> _State:
    root = _State(0)
    for stop in stops:
        _insert(root, stop)
    queue = deque([root])
    while queue:  # breadth first: a fallback is shorter, so it is complete when it is needed
        state = queue.popleft()
        for char, child in state.children.items():
            child.fallback = root if state.fallback is None else _step(state.fallback, char)
            child.match = child.match or child.fallback.match
            queue.append(child)
    return root


def _insert(root: _State, stop: str) -> None:
    state = root
    for char in stop:
        state = state.children.setdefault(char, _State(state.depth + 1))
    state.match = stop
