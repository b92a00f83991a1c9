"""Folding deltas: into whole answers, and into the usage that is billed."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from rosellm.roseinfer.messages import Logprobs
from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.delta import Delta, Finish, TokenLogprobs
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.schemas.responses import (
    CompletionTokensDetails,
    PromptTokensDetails,
    Usage,
)
from rosellm.roseinfer.server.schemas.streaming import StreamFields
from rosellm.roseinfer.text.parts import Call, joined


@dataclass
class Tally:
    """Counts tokens while they pass."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0

    @classmethod
    def of(cls, jobs: list[Job]) -> Tally:
        return cls(sum(len(job.prompt) for job in jobs))

    def add(self, delta: Delta) -> None:
        self.completion_tokens += len(delta.ids)
        self.cached_tokens += delta.cached
        self.reasoning_tokens += delta.reasoning_tokens
        self.accepted_prediction_tokens += delta.accepted
        self.rejected_prediction_tokens += delta.rejected

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            PromptTokensDetails(self.cached_tokens),
            CompletionTokensDetails(
                reasoning_tokens=self.reasoning_tokens,
                accepted_prediction_tokens=self.accepted_prediction_tokens,
                rejected_prediction_tokens=self.rejected_prediction_tokens,
            ),
        )


@dataclass(frozen=True)
class StreamedUsage:
    """What the chunks of a stream say of the usage."""

    asked: StreamFields
    tally: Tally

    @property
    def so_far(self) -> Usage | UnsetType | None:
        """In a chunk of the answer."""
        if self.asked.continuous_usage:
            return self.tally.usage()
        return None if self.asked.include_usage else UNSET

    @property
    def last(self) -> Usage | None:
        """In a chunk of its own, if there is to be one."""
        return self.tally.usage() if self.asked.include_usage else None


@dataclass
class Whole:
    """One finished choice; see ``Delta`` for its parts."""

    pieces: list[str] = field(default_factory=list)
    finish: Finish = "stop"
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt: list[Logprobs] = field(default_factory=list)
    vector: bytes | None = None
    reasoning: str = ""
    call_pieces: list[Call] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """How likely its tokens are, the one that stopped it included."""
        return self.logprob / max(1, len(self.ids))

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def calls(self) -> tuple[Call, ...]:
        return joined(self.call_pieces)

    @property
    def has_more(self) -> bool:
        """Whether there is something beside text."""
        return bool(self.reasoning or self.call_pieces)

    @property
    def scores(self) -> int:
        """How many log-probabilities it holds."""
        entries = [*self.prompt, *(each.scores for each in self.logprobs)]
        return sum(1 + len(each.top) for each in entries)

    def add(self, delta: Delta) -> None:
        self.pieces.append(delta.text)
        self.logprobs += delta.logprobs
        self.prompt += delta.prompt
        self.reasoning += delta.reasoning
        self.call_pieces += delta.calls
        self.vector = delta.vector or self.vector
        self.finish = delta.finish or self.finish
        self.ids += delta.ids
        self.logprob += delta.logprob


async def collect(answer: Answer, tally: Tally) -> list[Whole]:
    """All choices, finished: the same deltas that a stream would have sent."""
    choices = [Whole() for _ in range(answer.choices)]
    with answer:
        async for delta in answer:
            tally.add(delta)
            choices[delta.index].add(delta)
    return choices
