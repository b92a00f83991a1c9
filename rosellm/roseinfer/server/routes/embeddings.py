"""``POST /v1/embeddings``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastapi import APIRouter, Response
from msgspec import UNSET, Raw

from rosellm.roseinfer.errors import RequestError
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server.call import Call, Called
from rosellm.roseinfer.server.collect import Tally, collect
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.off_loop import off_loop
from rosellm.roseinfer.server.schemas.embeddings import EmbeddingRequest
from rosellm.roseinfer.server.schemas.responses import (
    Embedding,
    EmbeddingList,
    EmbeddingUsage,
    to_json,
)
from rosellm.roseinfer.server.service import Served, Service
from rosellm.roseinfer.server.unknown_fields import TolerantRoute
from rosellm.roseinfer.server.vectors import encoded, shortened

WAVE = 256  # inputs in the engine's queue at a time, so that many leave room for other requests
NO_SAMPLING = SamplingParams(seed=0, max_tokens=0)

router = APIRouter(route_class=TolerantRoute)


@router.post("/v1/embeddings")
async def create_embeddings(body: EmbeddingRequest, service: Served, call: Called) -> Response:
    """A vector of unit length for each input, in their order."""
    service.check_model(body.model)
    _check_dimensions(body.dimensions, service.ready.embedding_size)
    with call.timeline.during("tokenise"):
        reading = service.prompts.batch(body.inputs, "input", answer=0)
        prompts = await service.in_time(reading, call, body.timeout)
    jobs = [Job(prompt, NO_SAMPLING, want="pooled") for prompt in prompts]
    jobs = service.timed(jobs, call, body.timeout)
    tally = Tally.of(jobs)
    call.account.check_tokens()
    vectors = await _vectors(jobs, tally, service, call)
    data = await off_loop(
        len(vectors) * service.ready.embedding_size, lambda: list(_written(vectors, body))
    )
    usage = EmbeddingUsage(tally.prompt_tokens, tally.prompt_tokens)
    answer = EmbeddingList(data=data, model=service.name, usage=usage)
    answer.warnings = call.warnings or UNSET
    return json_response(answer)


def _check_dimensions(asked: int | None, size: int) -> None:
    if asked is not None and asked > size:
        raise RequestError(
            f"dimensions: this model's vectors have {size} numbers, and {asked} are asked for",
            param="dimensions",
            code="invalid_value",
        )


async def _vectors(jobs: Sequence[Job], tally: Tally, service: Service, call: Call) -> list[bytes]:
    found = []
    for wave in _waves(jobs, min(WAVE, service.max_choices), service.max_prompt_tokens // 4):
        answer = await service.begin(wave, call.account, [call.timeline.watch(wave)])
        for whole in await collect(answer, tally):
            assert whole.vector is not None, "a finished job of this kind has a vector"
            found.append(whole.vector)
    return found


def _waves(jobs: Sequence[Job], most: int, tokens: int) -> Iterator[list[Job]]:
    """Jobs in groups, each within these bounds unless it is of one."""
    wave: list[Job] = []
    length = 0
    for job in jobs:
        length += len(job.prompt)
        if wave and (len(wave) == most or length > tokens):
            yield wave
            wave, length = [], len(job.prompt)
        wave.append(job)
    yield wave


def _written(vectors: Sequence[bytes], body: EmbeddingRequest) -> Iterator[Raw]:
    """Each item is made JSON by itself, since making it holds up all other threads."""
    for index, vector in enumerate(vectors):
        if body.dimensions is not None:
            vector = shortened(vector, body.dimensions)
        embedding = encoded(vector, body.encoding_format or "float")
        yield Raw(to_json(Embedding(index=index, embedding=embedding)))
