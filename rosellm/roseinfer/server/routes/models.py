"""``GET /v1/models``."""

from __future__ import annotations

from fastapi import APIRouter, Response

from rosellm.roseinfer.server.json_response import json_response
from rosellm.roseinfer.server.schemas.responses import Model, ModelList
from rosellm.roseinfer.server.service import Served, Service

router = APIRouter()


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
