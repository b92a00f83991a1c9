"""A text as a model reads it to be measured: token ids, in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rosellm.roseinfer.errors import ConfigError


@dataclass(frozen=True)
class Passage:
    """Token ids of a text.

    Attributes:
        ids: the whole text's.
        bos: id that every window begins with, if any.
        window: most tokens that are read together.
    """

    ids: Sequence[int]
    bos: int | None
    window: int = 512

    def windows(self, longest: int) -> list[list[int]]:
        """Stretches that are read one after another, each on its own; a last token alone is not.

        Args:
            longest: most tokens that the model takes.

        Raises:
            ConfigError: the text is too short.
        """
        first = [] if self.bos is None else [self.bos]
        size = min(self.window, longest) - len(first)
        parts = [self.ids[start : start + size] for start in range(0, len(self.ids), size)]
        windows = [[*first, *part] for part in parts if len(part) > 1]
        if not windows:
            raise ConfigError("the text has fewer than two tokens: name a longer one")
        return windows
