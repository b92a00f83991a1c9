"""From what pydantic complains about to the one error that a client reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rosellm.roseinfer.errors import RequestError

SHOWN_LENGTH = 60
OUR_TYPES = frozenset(  # raised by our schemas
    {
        "not_built",
        "needs_stream",
        "needs_logprobs",
        "needs_messages",
        "not_streamed",
        "both",
        "below_n",
    }
)

Location = Sequence[str | int]


def request_error(
    errors: Sequence[Mapping[str, Any]], body: Any, known: Iterable[str]
) -> RequestError:
    """The first of pydantic's complaints, in our words.

    A misspelt name explains a missing one, so an unknown top-level field comes first.

    Args:
        errors: ``ValidationError.errors()``, located from the body down.
        body: the JSON value that was checked.
        known: names of the top-level fields.
    """
    first = min(errors, key=lambda error: not _is_unknown_at_top(error))
    kind, where = first["type"], param(first["loc"], body)
    if not where:
        return RequestError("the body must be a JSON object (Content-Type: application/json)")
    if kind == "extra_forbidden":
        return _unknown(where, known if _is_unknown_at_top(first) else ())
    if kind == "missing":
        return RequestError(f"{where} is required", param=where, code="missing_required_parameter")
    return RequestError(f"{where}: {_complaint(first)}", param=where, code=_code(kind))


def param(location: Location, body: Any) -> str:
    """A location as OpenAI writes it, ``messages[0].content``.

    Pydantic mixes the tags of unions into its locations; what is no key of the body is a
    tag, except at the end, where it is a field that is missing.
    """
    path, here, last = "", body, len(location) - 1
    for depth, step in enumerate(location):
        if isinstance(step, int) and isinstance(here, list):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(here, dict) and (step in here or (depth == last and not _is_tag(step))):
            path, here = f"{path}.{step}" if path else str(step), here.get(step)
    return path


def _is_tag(step: str | int) -> bool:
    """Ours are written ``<list>``, pydantic's for a dict's keys ``[key]``."""
    return isinstance(step, str) and step.startswith(("<", "["))


def _is_unknown_at_top(error: Mapping[str, Any]) -> bool:
    return error["type"] == "extra_forbidden" and len(error["loc"]) == 1


def _unknown(name: str, known: Iterable[str]) -> RequestError:
    near = difflib.get_close_matches(name[:SHOWN_LENGTH], list(known), n=1)
    hint = f"; did you mean {_short(near[0])}?" if near else ""
    return RequestError(
        f"unknown parameter: {_short(name)}{hint}", param=name, code="unknown_parameter"
    )


def _code(kind: str) -> str:
    if kind == "not_built":
        return "unsupported_parameter"
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _complaint(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Input ").rstrip(".")
    if error["type"] in OUR_TYPES:
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
