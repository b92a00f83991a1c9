"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import APIRouter, Response
from msgspec import UNSET

from rosellm.roseinfer.server.answer import Answer
from rosellm.roseinfer.server.call import Call, Called
from rosellm.roseinfer.server.chat_choices import ChatChoices
from rosellm.roseinfer.server.collect import StreamedUsage, Tally, collect
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.rendering import rendering
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.responses import ChatChunk, ChatCompletion, MaybeTimings
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.streaming import event_stream
from rosellm.roseinfer.server.tool_grammars import answer_grammar
from rosellm.roseinfer.server.tools import tool_use
from rosellm.roseinfer.server.unknown_fields import TolerantRoute

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, service: Served, call: Called) -> Response:
    """Answer a conversation."""
    service.check_model(body.model)
    service.check_generates()
    service.check_choices(1, body.choices)
    job = await service.in_time(_job(body, service, call), call, body.timeout)
    tally = Tally.of([job])
    answer = await service.answer([job], call, body.timeout)
    head = service.head("chatcmpl", body, call)
    choices = ChatChoices(body, job, job.reader(service.prompts.tokenizer))
    if body.stream:
        await answer.begin()
        make = partial(ChatChunk, **head)
        timings = partial(service.timings, body, call)
        usage = StreamedUsage(body, tally)
        return event_stream(answer, _chunks(answer, usage, make, choices, timings))
    wholes = await collect(answer, tally)
    return json_response(
        ChatCompletion(
            **head,
            choices=await choices.whole(wholes),
            usage=tally.usage(),
            prompt_logprobs=await choices.prompt_scores(wholes),
            prompt_token_ids=choices.prompt_ids,
            timings=service.timings(body, call),
        )
    )


async def _job(body: ChatRequest, service: Service, call: Call) -> Job:
    use = tool_use(body)
    with call.timeline.during("tokenise"):
        prompt = await service.prompts.chat(
            body.messages,
            rendering(body, service.prompts),
            answer=body.least_answer,
            keep=body.truncate_prompt_tokens,
        )
        prediction = await _prediction(body, service)
    max_tokens = service.sampling.max_tokens(
        body.limit,
        len(prompt),
        default=None,
        param="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
    )
    format = service.prompts.formats.of_answer(service.prompts.end(prompt), use)
    with call.timeline.during("grammar"):
        tenant = call.account.tenant
        grammar = await answer_grammar(body.form, use, format, service.grammars, tenant)
    return service.job(
        prompt,
        body,
        max_tokens,
        logprobs=body.answer_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        continues=bool(body.continue_final_message),
        prediction=prediction,
        format=format,
        grammar=grammar,
    )


async def _prediction(body: ChatRequest, service: Service) -> list[int]:
    if body.prediction is None:
        return []
    return await service.prompts.prediction(body.prediction.text, "prediction")


async def _chunks(
    answer: Answer,
    usage: StreamedUsage,
    make: partial[ChatChunk],
    choices: ChatChoices,
    timings: Callable[[], MaybeTimings],
) -> AsyncIterator[ChatChunk]:
    prompt_ids = choices.prompt_ids  # in the first chunk alone
    async for delta in answer:
        usage.tally.add(delta)
        for piece in choices.pieces(delta):
            chunk = make(choices=[piece], usage=usage.so_far, prompt_token_ids=prompt_ids)
            if piece.finish_reason is not None and not answer.unfinished and usage.last is None:
                chunk.timings = timings()
            yield chunk
            prompt_ids = UNSET
    if usage.last is not None:
        yield make(choices=[], usage=usage.last, timings=timings())
