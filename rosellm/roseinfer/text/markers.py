"""Looking for markers in a text of which more may come."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(text: str, markers: Sequence[str], start: int = 0) -> tuple[int, str] | None:
    """Place and name of the first marker in ``text`` from ``start`` on.

    >>> first_of("a [B] <c>", ["<c>", "[B]"])
    (2, '[B]')
    """
    found = [(text.find(marker, start), marker) for marker in markers]
    return min((each for each in found if each[0] >= 0), default=None)


def begun(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may turn out to begin a marker.

    >>> begun("one <to", ["<tool>"])
    3
    """
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
