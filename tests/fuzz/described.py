"""Requests that schemathesis makes of a server's own description of itself, ``/openapi.json``.

A few a second for the largest schemas, so a long run has them as a small share of its cases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from tests.fuzz.answers import Got, check

BATCH = 200
"""Examples that one run of Hypothesis tries: it remembers each."""


def try_many(
    strategy: SearchStrategy[Any], attempt: Callable[[Any], None], cases: int, seed: int | None
) -> None:
    """Attempt what the strategy makes; of a failure it tells the smallest.

    Args:
        seed: makes the same cases again; without, they are others each time.
    """
    for done in range(0, cases, BATCH):
        settings = hypothesis.settings(
            max_examples=min(BATCH, cases - done),
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        test = settings(hypothesis.given(strategy)(attempt))
        (test if seed is None else hypothesis.seed(seed + done)(test))()


def try_description(
    served: Any,
    send: Callable[[httpx.Request], httpx.Response],
    cases: Callable[[int], int],
    seed: int | None = None,
) -> int:
    """Try each operation that a server tells of; how many requests were sent.

    Args:
        served: the application, or the URL of a server.
        cases: of each operation, by how many operations there are.

    Raises:
        AssertionError: an answer is not as it should be.
    """
    if isinstance(served, str):
        api = schemathesis.openapi.from_url(f"{served}/openapi.json")
    else:
        api = schemathesis.openapi.from_asgi("/openapi.json", served)
    operations = [found.ok() for found in api.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/completions", "/health"}
    client, sent = httpx.Client(base_url="http://localhost"), 0

    def attempt(case: Any) -> None:
        nonlocal sent
        asked = case.as_transport_kwargs(base_url="http://localhost")
        asked.pop("cookies", None)
        request = client.build_request(**asked)
        answer = send(request)
        sent += 1
        check(request.method, Got(answer.status_code, answer.headers, answer.content))

    for operation in operations:
        try_many(operation.as_strategy(), attempt, cases(len(operations)), seed)
    return sent
