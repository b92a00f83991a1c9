"""Values of a JSON Schema, and damage to them, drawn by a ``random.Random``.

That may be one with a seed, which makes a body in some ten microseconds, or Hypothesis's own
(``st.randoms()``), which can make a failing one smaller. Knows nothing of requests.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

Value = Any
Node = Mapping[str, Any]
Draw = Callable[[Random], Value]

LETTERS = (
    string.ascii_letters + string.digits,
    string.printable,
    "éñßøÆŁ¿–“”…",
    "日本語中文한국어العربية",
    "\u0300\u200b\u200d\u202e\ufeff\ufffd\U0001f600\U0001f469\U0010ffff\x00\x7f\x85\u2028",
)
MOST_EXTRA = 5
HOSTILE: tuple[Value, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, 5e-324, -0.0),
    *(math.nan, math.inf, -math.inf, "", " ", "\0", "\ud800", "\U0010ffff", "é" * 300, "{{ 1 }}"),
    *("<tool_call>", "</think>", "<|endoftext|>", "a" * 3000, [], {}, [[]], [{}], {"": {}}, [None]),
    *({"type": "nothing"}, {"$ref": "#"}, ["a"] * 50, [5] * 100, {"role": "user"}, "NaN", "5"),
)


def text(random: Random, least: int = 0, most: int = 12) -> str:
    letters = random.choice(LETTERS)
    return "".join([random.choice(letters) for _ in range(random.randint(least, most))])


def integer(random: Random, least: int, most: int) -> int:
    """Mostly small ones and those at the limits."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice([least, most])
    if kind == 1:
        return random.randint(least, most)
    return max(least, min(most, random.randint(-2, 20)))


def number(random: Random, least: float | None, most: float | None) -> float:
    low = -1e6 if least is None else least
    high = low + 10 if most is None else most
    if random.randrange(4) == 0:
        return random.choice([low, high])
    return low + (high - low) * random.random()


def anything(random: Random, depth: int = 2) -> Value:
    kind = random.randrange(6 if depth else 4)
    if kind == 4:
        return [anything(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 5:
        return {text(random): anything(random, depth - 1) for _ in range(random.randrange(4))}
    return [None, random.random() < 0.5, random.randint(-5, 5), text(random)][kind]


def one_of(*values: Value) -> Draw:
    return lambda random: random.choice(values)


def several(draw: Draw, most: int) -> Draw:
    return lambda random: [draw(random) for _ in range(random.randint(0, most))]


class Drawing:
    """Turns a schema into a function that draws its values.

    Args:
        defs: what references in the schema mean.
        known: of fields with these names, whatever their schema says.
    """

    def __init__(self, defs: Node, known: Mapping[str, Draw]) -> None:
        self._defs, self._known = defs, known
        self._referred: dict[str, Draw] = {}

    def of(self, node: Node, name: str = "") -> Draw:
        if name in self._known:
            return self._known[name]
        if "$ref" in node:
            return self._reference(node["$ref"].rpartition("/")[2])
        for union in ("anyOf", "oneOf"):
            if union in node:
                draws = [self.of(each) for each in node[union]]
                return lambda random: random.choice(draws)(random)
        if "const" in node:
            return one_of(node["const"])
        if "enum" in node:
            return one_of(*node["enum"])
        return self._typed(node)

    def _reference(self, name: str) -> Draw:
        """By name, since a schema may refer to itself."""
        if name not in self._referred:
            self._referred[name] = lambda random: self._referred[name](random)
            self._referred[name] = self.of(self._defs[name])
        return lambda random: self._referred[name](random)

    def _typed(self, node: Node) -> Draw:
        kind = node.get("type")
        if kind == "object":
            return self._object(node)
        if kind == "array":
            return self._array(node)
        if kind == "string":
            return _string(node)
        if kind == "integer":
            least = node.get("minimum", -(2**63))
            most = node.get("maximum", node.get("exclusiveMaximum", 2**63) - 1)
            return lambda random: integer(random, least, most)
        if kind == "number":
            return _number(node)
        if kind == "boolean":
            return one_of(True, False)
        return one_of(None) if kind == "null" else anything

    def _object(self, node: Node) -> Draw:
        if "properties" not in node:
            return _any_object
        fields = {name: self.of(each, name) for name, each in node["properties"].items()}
        required = [name for name in node.get("required", ()) if name in fields]
        others = sorted(fields.keys() - set(required))

        def draw(random: Random) -> Value:
            extra = random.sample(others, random.randint(0, min(MOST_EXTRA, len(others))))
            return {name: fields[name](random) for name in (*required, *extra)}

        return draw

    def _array(self, node: Node) -> Draw:
        least = node.get("minItems", 0)
        most = min(node.get("maxItems", least + 3), least + 3)
        items = self.of(node.get("items", {}))
        return lambda random: [items(random) for _ in range(random.randint(least, most))]


def _any_object(random: Random) -> Value:
    return {text(random): anything(random) for _ in range(random.randrange(4))}


def _string(node: Node) -> Draw:
    least = node.get("minLength", 0)
    if "pattern" in node:  # the schemas' patterns are all of names
        letters = string.ascii_letters + string.digits + "_-"
        return lambda random: "".join(
            [random.choice(letters) for _ in range(random.randint(1, 64))]
        )
    return lambda random: text(random, least, least + 12)


def _number(node: Node) -> Draw:
    above = node.get("exclusiveMinimum")
    least = node.get("minimum", None if above is None else above + 1e-3)
    return lambda random: number(random, least, node.get("maximum"))


def damaged(random: Random, value: Value) -> Value:
    """The value with one place of it replaced, taken away, or joined by something new."""
    if isinstance(value, dict) and value and random.randrange(6):
        key = random.choice(list(value))
        how = random.randrange(10)
        if how == 0:
            return {name: each for name, each in value.items() if name != key}
        if how == 1:
            return {**value, random.choice(["", "max_token", "é", "\ud800"]): 1}
        return {**value, key: damaged(random, value[key])}
    if isinstance(value, list) and value and random.randrange(6):
        place = random.randrange(len(value))
        if random.randrange(10) == 0:
            return value * 3
        return [*value[:place], damaged(random, value[place]), *value[place + 1 :]]
    return random.choice(HOSTILE)


def garbled(random: Random, sent: bytes) -> bytes:
    """Bytes with some of them cut out or replaced."""
    start = random.randint(0, len(sent))
    end = random.randint(start, min(len(sent), start + 20))
    middle = bytes([random.randrange(256) for _ in range(random.randrange(7))])
    return sent[:start] + middle + sent[end:]


def smaller(value: Value) -> Sequence[Value]:
    """The same with one thing less, at any depth: what a failing body is made smaller by."""
    if isinstance(value, dict):
        without = [{n: v for n, v in value.items() if n != name} for name in value]
        inner = [{**value, name: less} for name, each in value.items() for less in smaller(each)]
        return [*without, *inner]
    if isinstance(value, list):
        without = [[*value[:place], *value[place + 1 :]] for place in range(len(value))]
        inner = [
            [*value[:place], less, *value[place + 1 :]]
            for place, each in enumerate(value)
            for less in smaller(each)
        ]
        return [*([value[: len(value) // 2]] if len(value) > 3 else []), *without, *inner]
    if isinstance(value, str) and len(value) > 1:
        return [value[: len(value) // 2], value[len(value) // 2 :], value[:-1]]
    return []
