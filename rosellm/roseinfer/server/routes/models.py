"""``GET /health`` and ``GET /v1/models``."""

from __future__ import annotations

from fastapi import APIRouter, Response
from msgspec.structs import asdict

from rosellm.roseinfer.errors import EngineDeadError
from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.responses import Health, Model, ModelList
from rosellm.roseinfer.server.service import Served, Service

router = APIRouter()


@router.get("/health")
async def health(service: Served) -> Response:
    """Whether requests can be answered: 200, or 503 once the engine is dead."""
    pipeline = service.pipeline
    if pipeline.dead.is_set():
        raise EngineDeadError(pipeline.death)
    return json_response(Health(model=service.name, engine=asdict(pipeline.stats)))


@router.get("/v1/models")
async def list_models(service: Served) -> Response:
    """The one model that is served."""
    return json_response(ModelList(data=[_model(service)]))


@router.get("/v1/models/{id:path}")
async def get_model(id: str, service: Served) -> Response:
    """That model by its name, which may hold slashes."""
    service.check_model(id, param=None)
    return json_response(_model(service))


def _model(service: Service) -> Model:
    return Model(
        id=service.name, created=service.created, max_model_len=service.ready.max_model_len
    )
