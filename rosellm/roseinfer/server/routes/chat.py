"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.server.call import Called
from rosellm.roseinfer.server.collect import Tally, Whole, collect
from rosellm.roseinfer.server.generate import Answer, Delta, Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.logprobs import chat_logprobs, prompt_logprobs
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
)
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.spelling import Spelling
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.unknown_fields import TolerantRoute
from rosellm.roseinfer.text.tokenizer import Tokenizer

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, service: Served, call: Called) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    service.check_generates()
    service.check_choices(1, body.choices)
    job = await _job(body, service)
    tally = Tally.of([job])
    answer = service.pipeline.generate([job])
    head = service.head("chatcmpl", body, call)
    tokenizer = job.reader(service.prompts.tokenizer)
    if body.stream:
        await answer.begin()
        make = partial(ChatChunk, **head, usage=None if body.include_usage else UNSET)
        spellings = [Spelling(tokenizer) for _ in range(job.n)]
        return event_stream(answer, _chunks(answer, tally, make, spellings))
    wholes = await collect(answer, tally)
    completion = await off_loop(
        sum(whole.scores for whole in wholes),
        lambda: ChatCompletion(
            **head,
            choices=[_choice(*each, job, tokenizer) for each in enumerate(wholes)],
            usage=tally.usage(),
            prompt_logprobs=prompt_logprobs(
                tokenizer, job.prompt, wholes[0].prompt, body.prompt_logprobs
            ),
        ),
    )
    return json_response(completion)


async def _job(body: ChatRequest, service: Service) -> Job:
    newer = body.max_completion_tokens is not None
    asked = body.max_completion_tokens if newer else body.max_tokens
    prompt = await service.prompts.chat(body.messages, answer=0 if asked == 0 else 1)
    max_tokens = service.sampling.max_tokens(
        asked,
        len(prompt),
        default=None,
        param="max_completion_tokens" if newer else "max_tokens",
    )
    return service.job(
        prompt,
        body,
        max_tokens,
        logprobs=body.answer_logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )


def _choice(index: int, whole: Whole, job: Job, tokenizer: Tokenizer) -> ChatChoice:
    asked = job.params.logprobs is not None
    return ChatChoice(
        index=index,
        message=ChatMessage(content=whole.text),
        logprobs=chat_logprobs(Spelling(tokenizer), whole.logprobs) if asked else None,
        finish_reason=whole.finish,
    )


async def _chunks(
    answer: Answer, tally: Tally, make: partial[ChatChunk], spellings: Sequence[Spelling]
) -> AsyncIterator[ChatChunk]:
    """The role, the text, the finish, each in a chunk of its own."""
    begun: set[int] = set()
    async for delta in answer:
        tally.add(delta)
        piece = partial(ChatChunkChoice, index=delta.index)
        if delta.index not in begun:
            begun.add(delta.index)
            opening = ChatDelta(role="assistant", content="", refusal=None)
            yield make(choices=[piece(delta=opening)])
        if delta.text or delta.logprobs:
            logprobs = _logprobs(delta, spellings[delta.index])
            yield make(choices=[piece(delta=ChatDelta(content=delta.text), logprobs=logprobs)])
        if delta.finish is not None:
            yield make(choices=[piece(delta=ChatDelta(), finish_reason=delta.finish)])
    if make.keywords["usage"] is None:
        yield make(choices=[], usage=tally.usage())


def _logprobs(delta: Delta, spelling: Spelling) -> ChatLogprobs | None:
    return chat_logprobs(spelling, delta.logprobs) if delta.logprobs else None
