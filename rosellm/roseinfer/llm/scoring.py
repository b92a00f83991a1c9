"""Log-likelihoods of texts, from the log-probabilities of prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.llm.gather import Gathered, spelt
from rosellm.roseinfer.llm.inputs import Prompt
from rosellm.roseinfer.llm.jobs import prompt_ids
from rosellm.roseinfer.llm.params import SamplingParams
from rosellm.roseinfer.llm.results import Score
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.service import Service
from rosellm.roseinfer.text.tokenizer import Tokenizer

_COMPUTE_ONLY = SamplingParams(max_tokens=0)
_LIKELIEST = 1  # enough to tell whether another token was likelier


@dataclass(frozen=True)
class Scoring:
    """What is to be scored: the tokens of ``job``'s prompt from ``start`` on."""

    job: Job
    start: int


async def of_text(service: Service, text: Prompt) -> Scoring:
    """All of a text."""
    return Scoring(_job(service, await prompt_ids(service, text, answer=0)), 0)


async def of_continuation(service: Service, prompt: Prompt, continuation: Prompt) -> Scoring:
    """What ``continuation`` adds to ``prompt``.

    Two texts are tokenised as one, as a model reads them: a token that holds the end of the
    prompt and the beginning of the continuation counts as the continuation's.
    """
    before = await prompt_ids(service, prompt, answer=0)
    if not isinstance(prompt, str) and not isinstance(continuation, str):
        whole = await prompt_ids(service, [*prompt, *continuation], answer=0)
    elif isinstance(prompt, str) and isinstance(continuation, str):
        whole = await prompt_ids(service, prompt + continuation, answer=0)
    else:
        raise RequestError("prompt and continuation must both be text, or both be token ids")
    return Scoring(_job(service, whole), _common_length(before, whole))


def score(tokenizer: Tokenizer, asked: Scoring, gathered: Gathered) -> Score:
    """The answer to it."""
    ids, start = asked.job.prompt, asked.start
    scores = [None, *gathered.prompt][start:]  # nothing stands before the very first
    logprobs = tuple(None if each is None else each.chosen for each in scores)
    return Score(
        token_ids=tuple(ids[start:]),
        tokens=spelt(tokenizer, ids)[start:],
        logprobs=logprobs,
        total=math.fsum(logprob for logprob in logprobs if logprob is not None),
        is_greedy=all(each is None or each.chosen >= each.top[0] for each in scores),
    )


def _job(service: Service, ids: list[int]) -> Job:
    service.check_generates()
    return service.job(ids, _COMPUTE_ONLY, max_tokens=0, prompt_logprobs=_LIKELIEST)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    shorter = min(len(first), len(second))
    return next((index for index, (one, other) in pairs if one != other), shorter)
