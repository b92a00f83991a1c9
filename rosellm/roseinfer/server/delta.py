"""News of one choice, as the pipeline gives it to whoever shapes responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rosellm.roseinfer.messages import FinishReason, Logprobs, Timings
from rosellm.roseinfer.text.parts import Call

Finish = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token of an answer, and how likely the model found it and others in its place."""

    id: int
    scores: Logprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one choice.

    Attributes:
        index: of the choice among those of all jobs, job by job.
        text: may be empty while bytes or a possible stop string are held back.
        cached: prompt tokens found in the prefix cache.
        finish: why the choice ended, or None.
        ids: the tokens that it took, the one that stopped it included.
        logprobs: of the tokens whose text is out by now, if asked for.
        prompt: the next prompt positions' log-probabilities, if asked for.
        reasoning: what comes of the reasoning.
        calls: of tools, in pieces; the first may go on with the arguments of the call before.
        reasoning_tokens: how many tokens have turned out to be reasoning.
        vector: of a request that wants one, see ``Pooled``.
        logprob: of all its ``ids`` together, if log-probabilities are asked for.
        accepted: tokens of the prediction that are among the ``ids``.
        rejected: with ``finish``, those that the choice does not have.
        timings: what the engine told of them with this news.
    """

    index: int
    text: str
    cached: int = 0
    finish: Finish | None = None
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt: tuple[Logprobs, ...] = ()
    vector: bytes | None = None
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    reasoning_tokens: int = 0
    logprob: float = 0.0
    accepted: int = 0
    rejected: int = 0
    timings: Timings | None = None
