"""Writes docs/api.md from the registry of parameters, so that it cannot be out of date."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rosellm.roseinfer.server.parameters import ENDPOINTS, Endpoint, Parameter, parameters
from rosellm.roseinfer.server.schemas.fields import Body, Outcome

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

HEAD = """\
# API parameters

Every field of every request. This page is written by `python scripts/write_api.py` from the
registry that the server itself uses (`rosellm/roseinfer/server/parameters.py`); a test keeps the
two together, and a running server tells the same as JSON at `GET /v1/capabilities`.

A field is one of three:

- **applied**: it does what it says.
- **rejected**: null and the value shown are accepted, since they ask for nothing; any other is a
  400 whose `error.param` names the field.
- **no effect**: it is checked for its type and changes nothing. These are OpenAI's bookkeeping.

Any other name is a 400 with the nearest known name. With `--unknown-parameters warn`, chats,
completions and embeddings are answered without the unknown fields, and a `warnings` list in the
answer (in a stream, in each chunk) names them.

Every field that is not required may be null, which is the same as leaving it out. Where a default
is not said, it is the server's (`rosellm serve --help`), then the model's
`generation_config.json`, then OpenAI's. Names that are marked with \\* are not OpenAI's; they are
vLLM's where it has them.
"""

TAIL = """\
## Other routes

| route | what it answers |
| --- | --- |
| `POST /v1/chat/completions/render` | what a chat request comes to: `prompt`, its text, and \
`prompt_token_ids` |
| `GET /v1/models`, `GET /v1/models/NAME` | what is served, with `max_model_len` |
| `GET /v1/capabilities` | this page as JSON |
| `GET /health` | the engine's state |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *map(_endpoint, ENDPOINTS), TAIL])


def _endpoint(endpoint: Endpoint) -> str:
    lines = [f"## POST {endpoint.path}", "", _sentence(endpoint.request), ""]
    lines += _table(endpoint.request)
    if endpoint.path == "/tokenize":
        return "\n".join([*lines, "", "Messages are those of a chat.", ""])
    for where, kind in endpoint.objects.items():
        lines += ["", f"### {where}", "", _sentence(kind), "", *_table(kind)]
    return "\n".join([*lines, ""])


def _sentence(kind: type[Body]) -> str:
    return (kind.__doc__ or "").strip().replace("``", "`")


def _table(kind: type[Body]) -> Iterator[str]:
    yield "| field | | values | what it does |"
    yield "| --- | --- | --- | --- |"
    for each in parameters(kind):
        star = "" if each.openai else " \\*"
        told = each.description.replace("|", "\\|")
        yield f"| `{each.name}`{star} | {_status(each)} | {_values(each)} | {told} |"


def _status(each: Parameter) -> str:
    return "required" if each.required else each.outcome.value


def _values(each: Parameter) -> str:
    if each.outcome is Outcome.REJECTED:
        return f"only {_accepted(each.schema)}"
    return _form(each.schema)


def _accepted(schema: Mapping[str, Any]) -> str:
    if schema.get("maxItems") == 0:
        return "`[]`"
    if schema.get("type") == "object":
        return "`{}`" if schema.get("maxProperties") == 0 else "its default"
    if "items" in schema:
        return f"`{json.dumps([schema['items']['const']])}`"
    return f"`{json.dumps(schema.get('const'))}`"


def _form(schema: Mapping[str, Any]) -> str:
    """A type and its limits in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_form, schema["anyOf"])))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_form(schema['items'])}{_count(schema, 'Items', 'items')}"
    if kind == "string":
        return f"text{_count(schema, 'Length', 'characters')}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"object of {_form(inner)}" if isinstance(inner, dict) else "object"
    return {"integer": "integer", "number": "number", "boolean": "yes, no"}.get(
        kind, kind
    ) + _range(schema)


def _count(schema: Mapping[str, Any], what: str, unit: str) -> str:
    most = schema.get(f"max{what}")
    return "" if most is None else f" (at most {most} {unit})"


def _range(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if schema.get("exclusiveMinimum") is not None:
        return f" above {schema['exclusiveMinimum']}"
    if least is None or least < -(2**31) + 1:
        return ""
    return f", {least} or more" if most is None else f", {least} to {most}"


if __name__ == "__main__":
    PAGE.write_text(page())
