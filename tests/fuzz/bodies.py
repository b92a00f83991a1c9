"""Request bodies from the schemas that the server itself reads them by, and damaged ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from rosellm.roseinfer.server.parameters import ENDPOINTS
from rosellm.roseinfer.server.schemas.fields import Body

Value = Any
Node = Mapping[str, Any]

TEXT = st.text(max_size=12)
NAMES = ("tiny", "roseinfer-gpt2")
# What a schema allows and would only take long: the same with less work.
SMALL: dict[str, SearchStrategy[Any]] = {
    "model": st.sampled_from(NAMES),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 4),
    "max_tokens": st.integers(0, 12),
    "max_completion_tokens": st.integers(0, 12),
    "max_new_tokens": st.integers(1, 12),
    "min_tokens": st.integers(0, 4),
    "dimensions": st.integers(1, 48),
    "timeout": st.sampled_from([0.001, 0.05, 30]),
    "tokens": st.lists(st.integers(0, 399), max_size=20),
    "logit_bias": st.dictionaries(st.integers(0, 399).map(str), st.floats(-100, 100), max_size=4),
    "stop_token_ids": st.lists(st.integers(0, 399), max_size=4),
}
SCHEMAS = st.recursive(
    st.sampled_from(
        [
            *({}, True, False, {"type": "string"}, {"type": "integer", "minimum": 3}),
            *({"enum": [1, "a", None]}, {"const": 5}, {"$ref": "#"}, {"$ref": "#/$defs/x"}),
            *({"type": "string", "pattern": "a{1,50}b*"}, {"format": "date"}, {"type": "nothing"}),
        ]
    ),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "é"]), inner, max_size=3).map(
            lambda found: {"type": "object", "properties": found, "required": list(found)}
        ),
        inner.map(lambda found: {"type": "array", "items": found, "maxItems": 3}),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"allOf": found}),
    ),
    max_leaves=5,
)
SMALL |= {
    "schema": SCHEMAS.filter(lambda found: isinstance(found, dict)),
    "parameters": SCHEMAS.filter(lambda found: isinstance(found, dict)),
    "json": SCHEMAS,
    "regex": st.sampled_from(["a+", "[ab]{3}", "(", "", r"\d+", "(a|b)*c", r"[^\x00]{1,9}"]),
    "grammar": st.sampled_from(['start: "a" | "b"', "start: x", 'root ::= "a"', "", "start: /a+/"]),
}

HOSTILE: tuple[Value, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, 5e-324, -0.0),
    *(math.nan, math.inf, -math.inf, "", " ", "\0", "\ud800", "\U0010ffff", "é" * 300, "{{ 1 }}"),
    *("<tool_call>", "</think>", "<|endoftext|>", "a" * 3000, [], {}, [[]], [{}], {"": {}}, [None]),
    *({"type": "nothing"}, {"$ref": "#"}, ["a"] * 50, [5] * 100, {"role": "user"}, "NaN", "5"),
)


@cache
def bodies(schema: type[Body]) -> SearchStrategy[Value]:
    """Values of a request's schema: most are served, some break a rule that no schema says."""
    shown = schema.model_json_schema()
    return _of(shown, shown.get("$defs", {}), "")


@st.composite
def requests(draw: DrawFn) -> tuple[str, bytes]:
    """A path, and the bytes of a body: as they should be, damaged in places, or in any byte."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    path = endpoint.path
    if path == "/v1/chat/completions" and draw(st.booleans()):
        path += "/render"
    body = draw(bodies(endpoint.request))
    for _ in range(draw(st.integers(0, 3))):
        body = draw(_damaged(body))
    sent = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        sent = draw(_garbled(sent))
    return path, sent


def _of(node: Node, defs: Node, name: str) -> SearchStrategy[Value]:
    if name in SMALL:
        return SMALL[name]
    if "$ref" in node:
        return _of(defs[node["$ref"].rpartition("/")[2]], defs, "")
    for union in ("anyOf", "oneOf"):
        if union in node:
            return st.one_of([_of(each, defs, "") for each in node[union]])
    if "const" in node:
        return st.just(node["const"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    return KINDS.get(node.get("type", ""), _anything)(node, defs)


def _object(node: Node, defs: Node) -> SearchStrategy[Value]:
    if "properties" not in node:
        return st.dictionaries(TEXT, _anything(node, defs), max_size=3)
    fields = {name: _of(each, defs, name) for name, each in node["properties"].items()}
    required = {name: fields.pop(name) for name in node.get("required", ())}
    chosen = st.lists(st.sampled_from(sorted(fields)), max_size=5, unique=True) if fields else None
    if chosen is None:
        return st.fixed_dictionaries(required)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(required | {name: fields[name] for name in names})
    )


def _array(node: Node, defs: Node) -> SearchStrategy[Value]:
    least = node.get("minItems", 0)
    most = min(node.get("maxItems", least + 3), least + 3)
    return st.lists(_of(node.get("items", {}), defs, ""), min_size=least, max_size=most)


def _string(node: Node, _: Node) -> SearchStrategy[Value]:
    if "pattern" in node:
        return st.from_regex(node["pattern"], fullmatch=True).map(lambda found: found[:64])
    return st.text(min_size=node.get("minLength", 0), max_size=node.get("minLength", 0) + 12)


def _integer(node: Node, _: Node) -> SearchStrategy[Value]:
    least = node.get("minimum", -(2**63))
    return st.integers(least, node.get("maximum", node.get("exclusiveMaximum", 2**63) - 1))


def _number(node: Node, _: Node) -> SearchStrategy[Value]:
    least = node.get("minimum", node.get("exclusiveMinimum"))
    most = node.get("maximum")
    bounds = st.floats(least, most, allow_nan=False, allow_infinity=False)
    return bounds.filter(lambda found: found != node.get("exclusiveMinimum"))


def _anything(_: Node, __: Node) -> SearchStrategy[Value]:
    return st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-5, 5), TEXT),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)
        ),
        max_leaves=4,
    )


KINDS: dict[str, Callable[[Node, Node], SearchStrategy[Value]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda *_: st.booleans(),
    "null": lambda *_: st.none(),
}


@st.composite
def _damaged(draw: DrawFn, body: Value) -> Value:
    """A value with one place of it replaced, taken away, or joined by something new."""
    if isinstance(body, dict) and body and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(body)))
        how = draw(st.integers(0, 9))
        if how == 0:
            return {name: each for name, each in body.items() if name != key}
        if how == 1:
            return {**body, draw(st.sampled_from(["", "max_token", "é", "\ud800"])): 1}
        return {**body, key: draw(_damaged(body[key]))}
    if isinstance(body, list) and body and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(body) - 1))
        if draw(st.integers(0, 9)) == 0:
            return [*body, *body, *body]
        return [*body[:place], draw(_damaged(body[place])), *body[place + 1 :]]
    return draw(st.sampled_from(HOSTILE))


@st.composite
def _garbled(draw: DrawFn, sent: bytes) -> bytes:
    """Bytes with some of them cut out or replaced."""
    start = draw(st.integers(0, len(sent)))
    end = draw(st.integers(start, min(len(sent), start + 20)))
    return sent[:start] + draw(st.binary(max_size=6)) + sent[end:]
