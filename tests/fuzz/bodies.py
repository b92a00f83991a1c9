"""Requests from the schemas that the server itself reads them by, and damaged ones.

A request is drawn by a ``random.Random``: one made from a seed and the number of a case gives the
same request again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from rosellm.roseinfer.server.parameters import ENDPOINTS
from rosellm.roseinfer.server.schemas.fields import Body
from tests.fuzz.values import (
    Draw,
    Drawing,
    Value,
    damaged,
    garbled,
    number,
    one_of,
    several,
)

NAMES = ("tiny-llama", "roseinfer-gpt2")


@dataclass(frozen=True)
class Sent:
    """A request as it goes out."""

    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


def _token(random: Random) -> int:
    return random.randrange(400)


def _bias(random: Random) -> Value:
    return {str(_token(random)): number(random, -100, 100) for _ in range(random.randrange(5))}


LEAVES: tuple[Value, ...] = (
    *({}, True, False, {"type": "string"}, {"type": "integer", "minimum": 3}),
    *({"enum": [1, "a", None]}, {"const": 5}, {"$ref": "#"}, {"$ref": "#/$defs/x"}),
    *({"type": "string", "pattern": "a{1,50}b*"}, {"format": "date"}, {"type": "nothing"}),
)


def _schema(random: Random, depth: int = 3) -> Value:
    """A JSON Schema for an answer to match."""
    kind = random.randrange(6) if depth else 5
    if kind == 0:
        found = {
            random.choice("abé"): _schema(random, depth - 1) for _ in range(random.randrange(4))
        }
        return {"type": "object", "properties": found, "required": list(found)}
    if kind == 1:
        return {"type": "array", "items": _schema(random, depth - 1), "maxItems": 3}
    if kind in (2, 3):
        every = [_schema(random, depth - 1) for _ in range(random.randint(1, 3))]
        return {["anyOf", "allOf"][kind - 2]: every}
    return random.choice(LEAVES)


def _object_schema(random: Random) -> Value:
    found = _schema(random)
    return found if isinstance(found, dict) else {}


# What a schema allows and would only take long: the same with less work.
SMALL: Mapping[str, Draw] = {
    "model": one_of(*NAMES),
    "n": lambda random: random.randint(1, 3),
    "best_of": lambda random: random.randint(1, 4),
    "max_tokens": lambda random: random.randint(0, 6),
    "max_completion_tokens": lambda random: random.randint(0, 6),
    "max_new_tokens": lambda random: random.randint(1, 6),
    "min_tokens": lambda random: random.randint(0, 4),
    "dimensions": lambda random: random.randint(1, 48),
    "timeout": one_of(0.001, 0.05, 30),
    "tokens": several(_token, 20),
    "logit_bias": _bias,
    "stop_token_ids": several(_token, 4),
    "schema": _object_schema,
    "parameters": _object_schema,
    "json": _schema,
    "regex": one_of("a+", "[ab]{3}", "(", "", r"\d+", "(a|b)*c", r"[^\x00]{1,9}"),
    "grammar": one_of('start: "a" | "b"', "start: x", 'root ::= "a"', "", "start: /a+/"),
}


@cache
def bodies(schema: type[Body]) -> Draw:
    """Values of a request's schema: most are served, some break a rule that no schema says."""
    shown = schema.model_json_schema()
    return Drawing(shown.get("$defs", {}), SMALL).of(shown)


def request(random: Random) -> Sent:
    """A path, and a body: as it should be, damaged in places, or in any byte."""
    endpoint = random.choice(ENDPOINTS)
    path = endpoint.path
    if path == "/v1/chat/completions" and random.random() < 0.5:
        path += "/render"
    body = bodies(endpoint.request)(random)
    for _ in range(random.randint(0, 3)):
        body = damaged(random, body)
    sent = json.dumps(body, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    if random.randrange(10) == 0:
        sent = garbled(random, sent)
    return Sent("POST", path, sent)


METHODS = ("GET", "POST", "PUT", "OPTIONS", "HEAD", "BREW")
TOKEN = "!#$%&'*+-.^_`|~0189azAZ"
PATHS = (
    *("/", "/v1/completions", "/v1/models/%2e%2e", "/health/..", "/v1//models", "/metrics"),
    *("/v1/models/tiny-llama", "/v1/chat/completions/", "/openapi.json", "/livez?x=%00", "/%ff"),
)
HEADERS = (
    *("accept", "authorization", "content-type", "content-encoding", "cookie", "origin"),
    *("traceparent", "x-request-id", "x-forwarded-for", "range", "if-none-match", "referer"),
)
VALUES = ("*", "gzip", "Bearer ", "application/json; charset=utf-16", "00-0-0-0", "bytes=0-", "")
RESERVED = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "expect", "upgrade")
)


def any_request(random: Random) -> Sent:
    """Method, path and headers of any bytes that HTTP allows."""
    path = random.choice(PATHS)
    if random.random() < 0.5:
        path = "/" + "".join([chr(random.randint(33, 126)) for _ in range(random.randrange(21))])
    body = bytes([random.randrange(256) for _ in range(random.randrange(21))])
    headers = [_header(random) for _ in range(random.randrange(4))]
    return Sent(
        random.choice(METHODS),
        path.replace("#", "?"),
        body,
        tuple((name, value) for name, value in headers if name.lower() not in RESERVED),
    )


def _header(random: Random) -> tuple[str, str]:
    name = "".join([random.choice(TOKEN) for _ in range(random.randint(1, 12))])
    value = "".join([chr(random.randint(32, 126)) for _ in range(random.randrange(31))])
    known = random.random() < 0.5
    return (
        random.choice(HEADERS) if known else name,
        random.choice(VALUES) if known and random.random() < 0.5 else value,
    )


def case(seed: int, number: int) -> Sent:
    """One of a long run: a body nine times in ten, else any request."""
    random = Random((seed << 40) + number)
    return any_request(random) if number % 10 == 9 else request(random)
