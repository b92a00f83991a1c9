"""A struct as a JSON response."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from rosellm.roseinfer.server.schemas.responses import to_json


def json_response(body: msgspec.Struct) -> Response:
    return Response(to_json(body), media_type="application/json")
