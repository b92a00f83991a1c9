"""What the library returns: plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token in its place, and how likely the model found it there.

    Attributes:
        text: the token's own; a broken character shows as U+FFFD, see ``bytes``.
        logprob: natural logarithm of the model's own probability: before temperature,
            penalties and bias.
        top: the likeliest tokens in this place, best first, as many as were asked for.
    """

    id: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One answer.

    Attributes:
        token_ids: all that were generated; the token that ended the answer is the last one.
        finish_reason: "stop" at a stop string or token, "length" at ``max_tokens``.
        logprobs: of the tokens that ``text`` is made of, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """All answers to one prompt. ``text`` and its like are those of the first.

    Attributes:
        prompt_token_ids: the prompt as the model saw it.
        cached_tokens: how many of these were found in the prefix cache.
        choices: as many as ``n`` asked for.
        prompt_logprobs: of the prompt's tokens from the second on, if asked for.
    """

    prompt_token_ids: tuple[int, ...]
    cached_tokens: int
    choices: tuple[Choice, ...]
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.choices[0].logprobs


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text, or the continuation of one.

    Attributes:
        token_ids: of the text, or of the continuation alone.
        tokens: each one's own text.
        logprobs: natural logarithms; None where nothing stands before the token.
        total: their sum: the log-likelihood.
        is_greedy: whether the model finds no other token likelier in any of these places, so
            that greedy decoding gives them.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    total: float
    is_greedy: bool


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Embedding:
    """A text as a vector of unit length.

    Attributes:
        vector: [size], fp32.
        token_ids: the text as the model saw it.
    """

    vector: np.ndarray[tuple[int], np.dtype[Any]]
    token_ids: tuple[int, ...]
