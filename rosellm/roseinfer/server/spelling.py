"""What single tokens add to a text, as bytes and as a string."""

from __future__ import annotations

from collections.abc import Sequence

from rosellm.roseinfer.text.tokenizer import Tokenizer


class Spelling:
    """Spells the tokens of one text in order, so that their bytes add up to it.

    They would do so by themselves, but for the leading space that many tokenizers drop where a
    text begins. Special tokens, which give no text, are spelt by their names.

    Args:
        context: ids that the text continues.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._begun = False  # whether there is text, so that no leading space is dropped any more
        self._start: list[int] = []
        for id in context:
            if self._begun:
                break
            self.advance(id)

    def bytes(self, id: int) -> bytes:
        """Bytes that this token adds if it is the next one."""
        spelt = self._tokenizer.token_bytes(id)
        if self._begun or id in self._tokenizer.special_ids:
            return spelt
        dropped = len(text_of(spelt)) - len(self._tokenizer.decode([*self._start, id]))
        is_space = dropped > 0 and spelt.startswith(b" " * dropped)
        return spelt[dropped:] if is_space else spelt

    def advance(self, id: int) -> None:
        """Go on to the place behind this token."""
        if not self._begun and id not in self._tokenizer.special_ids:
            self._start.append(id)
            self._begun = bool(self._tokenizer.decode(self._start))


def text_of(spelt: bytes) -> str:
    """Bytes of a token as text; U+FFFD where it holds only part of a character."""
    return spelt.decode(errors="replace")
