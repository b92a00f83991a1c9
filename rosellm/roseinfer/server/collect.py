"""Folding deltas: into whole texts, and into the usage that is billed."""

from __future__ import annotations

from dataclasses import dataclass, field

from rosellm.roseinfer.messages import FinishReason
from rosellm.roseinfer.server.generate import Answer, Delta, Job
from rosellm.roseinfer.server.schemas.responses import (
    CompletionTokensDetails,
    PromptTokensDetails,
    Usage,
)


@dataclass
class Tally:
    """Counts tokens while they pass."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(cls, jobs: list[Job]) -> Tally:
        return cls(sum(len(job.prompt) for job in jobs))

    def add(self, delta: Delta) -> None:
        self.completion_tokens += delta.tokens
        self.cached_tokens += delta.cached

    def usage(self) -> Usage:
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.prompt_tokens + self.completion_tokens,
            PromptTokensDetails(self.cached_tokens),
            CompletionTokensDetails(),
        )


@dataclass
class Whole:
    """One finished choice."""

    pieces: list[str] = field(default_factory=list)
    finish: FinishReason = "stop"

    @property
    def text(self) -> str:
        return "".join(self.pieces)


async def collect(answer: Answer, tally: Tally) -> list[Whole]:
    """All choices, finished: the same deltas that a stream would have sent."""
    choices = [Whole() for _ in range(answer.choices)]
    with answer:
        async for delta in answer:
            tally.add(delta)
            choices[delta.index].pieces.append(delta.text)
            if delta.finish is not None:
                choices[delta.index].finish = delta.finish
    return choices
