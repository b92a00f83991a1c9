"""JSON Schemas as data: their parts, their limits, and what has to be said more strictly.

Some formats are accepted by the grammar compiler a little more widely than their definitions have
it (a 29th of February in any year, a leap second at any time). They get a pattern beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_DEPTH = 100
_ONE = (
    *("additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if"),
    *("items", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"),
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")

Place = tuple[str | int, ...]

_LEAP = r"(\d\d(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = (
    r"(\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|\d{4}-(0[13-9]|1[0-2])-(29|30)"
    rf"|\d{{4}}-(0[13578]|1[02])-31|{_LEAP}-02-29)"
)
_TIME = r"\d\d:\d\d:[0-5]\d.*"
_STRICTER: dict[str, dict[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "date-time": {"pattern": f"^{_DATE}[Tt]{_TIME}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "hostname": {"pattern": r"^[A-Za-z0-9]+([-.][A-Za-z0-9]+)*$", "maxLength": 253},
}


def pointer(place: Sequence[str | int]) -> str:
    """A place as a JSON Pointer (RFC 6901).

    >>> pointer(("properties", "a/b", 0))
    '/properties/a~1b/0'
    """
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in place)


def subschemas(schema: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """A schema and all schemas in it, each before its parts, with their places."""
    yield place, schema
    for step, part in _parts(schema):
        yield from subschemas(part, (*place, *step))


def too_deep(value: Any) -> Place | None:
    """Where a JSON value is nested beyond the limit, if it is."""
    level: list[tuple[Place, Any]] = [((), value)]
    for _ in range(MAX_DEPTH):
        level = [(*place_and_part,) for outer in level for place_and_part in _inside(*outer)]
        if not level:
            return None
    return level[0][0]


def stricter(schema: Any) -> Any:
    """The same schema, with what formats leave open ruled out."""
    if not isinstance(schema, Mapping):
        return schema
    changed = {key: _stricter_value(key, value) for key, value in schema.items()}
    extra = _STRICTER.get(str(schema.get("format")))
    others = changed.get("allOf", [])
    if extra is not None and isinstance(others, list):
        changed["allOf"] = [*others, extra]
    return changed


def repeated_names(schema: Any) -> Place | None:
    """Where more properties are demanded than have names, so that one name could be given twice."""
    for place, part in subschemas(schema):
        least = part.get("minProperties") if isinstance(part, Mapping) else None
        if isinstance(least, int | float) and least >= 2:
            required = part.get("required")
            if not isinstance(required, list) or len({*map(str, required)}) < least:
                return (*place, "minProperties")
    return None


def _parts(schema: Any) -> Iterator[tuple[Place, Any]]:
    """The schemas directly in a schema, and the steps to them."""
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            yield from (((key, index), part) for index, part in enumerate(value))
        elif key in _MAPS and isinstance(value, Mapping):
            yield from (((key, name), part) for name, part in value.items())
        elif key in _ONE and isinstance(value, Mapping):
            yield (key,), value


def _stricter_value(key: str, value: Any) -> Any:
    """A keyword's value, with the schemas in it made stricter."""
    if key in _LISTS and isinstance(value, list):
        return [stricter(part) for part in value]
    if key in _MAPS and isinstance(value, Mapping):
        return {name: stricter(part) for name, part in value.items()}
    if key in _ONE and isinstance(value, Mapping):
        return stricter(value)
    return value


def _inside(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, Mapping):
        yield from (((*place, key), part) for key, part in value.items())
    elif isinstance(value, list):
        yield from (((*place, index), part) for index, part in enumerate(value))
