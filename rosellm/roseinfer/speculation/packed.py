"""Token ids as bytes, so that looking for a run of them is one call in C."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

_WIDTH = array("I").itemsize


class Packed:
    """A growing sequence of token ids that can be searched."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._data = bytearray()
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._data) // _WIDTH

    def extend(self, tokens: Iterable[int]) -> None:
        self._data += array("I", tokens).tobytes()

    def find(self, run: Sequence[int], start: int, end: int) -> int | None:
        """Index of the first occurrence that lies between ``start`` and ``end``."""
        wanted, at = array("I", run).tobytes(), start * _WIDTH
        while (at := self._data.find(wanted, at, end * _WIDTH)) % _WIDTH and at >= 0:
            at += 1  # between two ids
        return None if at < 0 else at // _WIDTH

    def find_last(self, run: Sequence[int], start: int, end: int) -> int | None:
        """Index of the last occurrence that lies between ``start`` and ``end``."""
        wanted, stop = array("I", run).tobytes(), end * _WIDTH
        while (at := self._data.rfind(wanted, start * _WIDTH, stop)) % _WIDTH and at >= 0:
            stop = at + len(wanted) - 1  # between two ids
        return None if at < 0 else at // _WIDTH
