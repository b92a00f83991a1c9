"""What a conversation needs of whoever answers it: a model in this process, or a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from rosellm.roseinfer.errors import RequestError

Message = dict[str, str]
"""One turn, with the keys ``role`` and ``content``."""

OVERFLOW = "context_length_exceeded"


class Pieces(Protocol):
    """An answer as it comes, piece by piece."""

    def __iter__(self) -> Iterator[str]: ...

    def close(self) -> None:
        """Abort what is still to be computed."""


class Answerer(Protocol):
    """Answers a conversation."""

    @property
    def about(self) -> str:
        """Who answers, in a few words."""

    @property
    def finish(self) -> str | None:
        """Why the last answer ended: "stop", "length" if it was cut short, or unknown."""

    def stream(self, messages: Sequence[Message]) -> Pieces:
        """The answer to the last message.

        Raises:
            RequestError: this conversation is refused; ``overflows`` tells whether for its length.
            RosellmError: there is no answer, or no whole one.
        """


def overflows(error: BaseException) -> bool:
    """Whether an answer was refused because the conversation fills the model's context."""
    return isinstance(error, RequestError) and error.code == OVERFLOW
