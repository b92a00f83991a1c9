"""Calls on their way out of one answer, in pieces none of which is ever taken back.

A call comes out once its name is that of a tool and its arguments have begun as an object: with
their first key. From then on it is one, whatever follows. Where its arguments turn out to be no
JSON, they are what the model wrote up to the next marker.

A string may hold a marker, and a string that was never closed has swallowed the one that ends the
call. Which it is shows behind the string, so from a marker on a string is held back up to there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rosellm.roseinfer.text.markers import begun, first_of
from rosellm.roseinfer.text.parts import Call, joined
from rosellm.roseinfer.text.tools.incoming import Incoming, NoCall, Waits


class Calls:
    """What the reader of a format tells calls to; the ``Sink`` of their arguments.

    Args:
        text: what the reader reads.
        markers: none of them is part of a call but inside of strings.
        names: the tools there are.
        most: calls that are wanted; None for any number.

    Attributes:
        made: how many have come out, or begun to.
        whole: whether the arguments of each are JSON and have come to their end.
        open: whether the last one's may still go on.
        enough: whether there has been one more than ``most``, or whoever reads wants no more.
    """

    def __init__(
        self, text: Incoming, markers: Sequence[str], names: Collection[str], most: int | None
    ) -> None:
        self._text = text
        self._markers = tuple(markers)
        self._names = frozenset(names)
        self._most = most
        self.made = 0
        self.whole = True
        self.open = False
        self.enough = False
        self._name = ""  # of a call that has not come out yet
        self._held = ""  # of its arguments
        self._pieces: list[Call] = []

    def closed(self) -> None:
        """Where calls may stand has come to its end: none is wanted behind it if all are made."""
        self.enough = self.enough or self.made == self._most

    def check(self, name: str) -> None:
        """
        Raises:
            NoCall: no tool has this name.
        """
        if name not in self._names:
            raise NoCall(f"no tool {name}")

    def begin(self, name: str) -> None:
        """A call, whose arguments will be said.

        Raises:
            NoCall: no tool has this name, or there are calls enough.
        """
        self.check(name)
        self.enough = self.made == self._most
        if self.enough:
            raise NoCall("one too many")
        self._name, self._held = name, ""

    def say(self, text: str) -> None:
        self._held += text

    def sure(self) -> None:
        if self._name:
            self._pieces.append(Call(self._name, ""))
            self._name, self.open = "", True
            self.made += 1
        self._release(len(self._held))
        self._text.keep = self._text.place

    def end(self, whole: bool = True) -> None:
        """The call has all its arguments, or gets no more of them."""
        self.sure()
        self.open = False
        self.whole = self.whole and whole

    def end_broken(self) -> Waits[None]:
        """End a call whose arguments are no JSON: behind the text up to the next marker."""
        found = first_of(self._held, self._markers)
        if found is None:
            yield from self._say_up_to_marker()
        else:
            self._held = self._held[: found[0]]
            self._text.place = self._text.text.index(found[1], self._text.keep)
        self.end(whole=False)

    def take(self) -> tuple[Call, ...]:
        """The pieces that have become certain."""
        if self.open and not self._held.startswith(self._markers):
            found = first_of(self._held, self._markers)
            certain = found[0] if found else len(self._held) - begun(self._held, self._markers)
            self._release(certain)
            if certain and not found:  # what is held stands as it came, right before the place
                self._text.keep = self._text.place - len(self._held)
        pieces, self._pieces = self._pieces, []
        return joined(pieces)

    def _say_up_to_marker(self) -> Waits[None]:
        """White space before the marker belongs to the format."""
        text = self._text
        while True:
            rest = text.rest
            found = first_of(rest, self._markers)
            end = found[0] if found else len(rest) - begun(rest, self._markers) * (not text.last)
            said = rest[:end].rstrip()
            self.say(said)
            text.place += len(said)
            if found is not None or text.last:
                text.place += end - len(said)
                return
            yield

    def _release(self, length: int) -> None:
        if length:
            self._pieces.append(Call("", self._held[:length]))
            self._held = self._held[length:]
