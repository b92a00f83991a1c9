"""Fields that no schema knows: a 400, or an answer without them (``--unknown-parameters warn``).

Only routes whose answers have a place for ``warnings`` can answer without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError

from rosellm.roseinfer.server.strict_json import Handle, StrictRequest, StrictRoute
from rosellm.roseinfer.server.validation import Location, known_to, steps, unknown

MOST_WARNINGS = 32  # each chunk of a stream carries them


class TolerantRoute(StrictRoute):
    """A route that leaves unknown fields out of the body where the service says so."""

    async def answer(self, handle: Handle, request: StrictRequest) -> Response:
        while True:
            try:
                return await handle(request)
            except RequestValidationError as error:
                found = list(_unknown(error))
                if not found or request.app.state.service.unknown_parameters == "reject":
                    raise
                self._leave_out(found, request, error.body)

    def _leave_out(self, found: Sequence[Location], request: StrictRequest, body: Any) -> None:
        known = known_to(self.body_field)
        told = [str(unknown(place, body, known)) for place in found[:MOST_WARNINGS]]
        if len(found) > MOST_WARNINGS:
            told.append(f"and {len(found) - MOST_WARNINGS} more unknown parameters")
        request.state.warnings = (*getattr(request.state, "warnings", ()), *told)
        request.replace_json(without(body, (steps(place, body) for place in found)))


def _unknown(error: RequestValidationError) -> Iterable[Location]:
    """Where they are in the body."""
    for each in error.errors():
        if each["type"] == "extra_forbidden":
            yield each["loc"][1:]


def without(value: Any, places: Iterable[Sequence[str | int]]) -> Any:
    """A JSON value without some of its fields; what holds none of them is not copied.

    >>> without({"a": [{"b": 1, "c": 2}]}, [("a", 0, "b")])
    {'a': [{'c': 2}]}
    """
    inside: dict[str | int, list[Sequence[str | int]]] = {}
    for key, *rest in places:
        inside.setdefault(key, []).append(rest)
    kept = value.copy()
    for key, deeper in inside.items():
        if all(deeper):
            kept[key] = without(kept[key], deeper)
        else:
            del kept[key]
    return kept
