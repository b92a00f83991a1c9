"""From what pydantic complains about to the one error that a client reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic_core.core_schema import ErrorType

from rosellm.roseinfer.errors import RequestError, shown
from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.server.schemas.nesting import nested

SHOWN_LENGTH = 60
PYDANTIC_TYPES = frozenset(get_args(ErrorType))  # others are our schemas'

Location = Sequence[str | int]


@dataclass(frozen=True)
class Known:
    """Names of the fields that a request may have, at its top and in the objects in it."""

    top: Iterable[str]
    nested: Iterable[str] = ()

    @classmethod
    def of(cls, schema: type[Body]) -> Known:
        inner = {name for kind in nested(schema) for name in kind.model_fields}
        return cls(schema.model_fields, inner)


def known_to(body_field: Any) -> Known:
    """Those of what FastAPI knows as a route's body."""
    return Known.of(body_field.field_info.annotation)


def request_error(errors: Sequence[Mapping[str, Any]], body: Any, known: Known) -> RequestError:
    """The first of pydantic's complaints, in our words.

    A misspelt name explains a missing one, so an unknown top-level field comes first.

    Args:
        errors: ``ValidationError.errors()``, located from the body down.
        body: the JSON value that was checked.
    """
    first = min(errors, key=lambda error: not _is_unknown_at_top(error))
    kind, where = first["type"], param(first["loc"], body)
    if not where:
        return RequestError("the body must be a JSON object (Content-Type: application/json)")
    if kind == "extra_forbidden":
        return unknown(first["loc"], body, known)
    if kind == "missing":
        reason, code = f"{shown(where)} is required", "missing_required_parameter"
        return RequestError(reason, param=where, code=code)
    return RequestError(f"{shown(where)}: {_complaint(first)}", param=where, code=_code(kind))


def unknown(location: Location, body: Any, known: Known) -> RequestError:
    """The complaint about a field that is in no schema, with the name that it may be meant for."""
    where = param(location, body)
    names = known.top if len(location) == 1 else known.nested
    near = difflib.get_close_matches(str(location[-1])[:SHOWN_LENGTH], list(names), n=1)
    hint = f"; did you mean {_short(near[0])}?" if near else ""
    return RequestError(
        f"unknown parameter: {_short(where)}{hint}", param=where, code="unknown_parameter"
    )


def param(location: Location, body: Any) -> str:
    """A location as OpenAI writes it, ``messages[0].content``."""
    path = ""
    for step in steps(location, body):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def steps(location: Location, body: Any) -> list[str | int]:
    """The keys and indices that lead there.

    Pydantic mixes the tags of unions into its locations; what is no key of the body is a
    tag, except at the end, where it is a field that is missing.
    """
    path: list[str | int] = []
    here, last = body, len(location) - 1
    for depth, step in enumerate(location):
        if isinstance(step, int) and isinstance(here, list):
            path, here = [*path, step], here[step]
        elif isinstance(here, dict) and (step in here or (depth == last and not _is_tag(step))):
            path, here = [*path, step], here.get(step)
    return path


def _is_tag(step: str | int) -> bool:
    """Ours are written ``<list>``, pydantic's for a dict's keys ``[key]``."""
    return isinstance(step, str) and step.startswith(("<", "["))


def _is_unknown_at_top(error: Mapping[str, Any]) -> bool:
    return error["type"] == "extra_forbidden" and len(error["loc"]) == 1


def _code(kind: str) -> str:
    if kind == "rejected":
        return "unsupported_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _complaint(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Input ").rstrip(".")
    if error["type"] not in PYDANTIC_TYPES:
        return message
    message = message.replace("should ", "must ", 1)
    if error["type"] in ("too_short", "too_long"):
        return message.partition(" after ")[0].lower()
    sent = error["input"]
    return message if isinstance(sent, list | dict) else f"{message}, not {_short(sent)}"


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # too long for Python to print
        return "a number this large"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."
