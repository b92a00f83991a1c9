"""``GET /health``, ``/livez`` and ``/readyz``, which need no key, and ``GET /metrics``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response
from msgspec.structs import asdict
from prometheus_client import CONTENT_TYPE_LATEST

from rosellm.roseinfer.errors import EngineDeadError
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.responses import Alive, Health
from rosellm.roseinfer.server.service import Served

router = APIRouter()


async def _serving(service: Served) -> None:
    if service.pipeline.trouble:
        raise EngineDeadError(service.pipeline.trouble)


@router.get("/health", dependencies=[Depends(_serving)])
async def health(service: Served) -> Response:
    """Whether requests should be sent here: 200, or 503 while the engine does not serve."""
    return json_response(Health(model=service.name, engine=asdict(service.pipeline.stats)))


@router.get("/readyz", dependencies=[Depends(_serving)])
async def ready() -> Response:
    """The same in one word: whether to send requests here."""
    return json_response(Alive())


@router.get("/livez")
async def live() -> Response:
    """That this process still answers, whatever its engine does: else it needs a restart."""
    return json_response(Alive())


@router.get("/metrics")
async def metrics(service: Served) -> Response:
    """Figures for Prometheus."""
    text = await asyncio.to_thread(service.metrics.text)  # some milliseconds
    return Response(text, media_type=CONTENT_TYPE_LATEST)
