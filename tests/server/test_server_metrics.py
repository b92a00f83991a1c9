"""``GET /metrics``: what happened is what is counted, under both prefixes, and never who it was."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rosellm.roseinfer.messages import Add, Output, RowError
from rosellm.roseinfer.server.metrics import Metrics
from tests.server.fakes import Server, says, serving

VLLM = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_prompt_tokens_sum",
    "request_generation_tokens_sum",
]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def figures(server: Server) -> dict[str, float]:
    """Every sample's value, by its name and its labels but for the model."""
    answer = await server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def test_answers_are_counted_under_both_names() -> None:
    async def test() -> None:
        async with serving(says("hello")) as server:
            before = await figures(server)
            await server.chat()
            await server.complete(prompt="abc", stream=True)
            after = await figures(server)
            for name in VLLM:
                assert after[f"rosellm:{name}"] == after[f"vllm:{name}"]
            grown = {name: after[name] - before.get(name, 0) for name in after}
            assert grown["rosellm:e2e_request_latency_seconds_count"] == 2
            assert grown["rosellm:time_to_first_token_seconds_count"] == 2
            assert grown["rosellm:request_success_total stop"] == 2
            made = grown["rosellm:generation_tokens_total"]
            assert made == grown["rosellm:request_generation_tokens_sum"] > 0
            read = grown["rosellm:prompt_tokens_total"]
            assert read == grown["rosellm:request_prompt_tokens_sum"] > 3

    run(test())


def test_refusals_are_counted_by_their_kind() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.chat(temperature=9)
            await server.client.get("/nowhere")
            await server.client.delete("/health")
            found = await figures(server)
            assert found["rosellm:rejected_total invalid"] == 1
            assert found["rosellm:rejected_total not_found"] == 1
            assert found["rosellm:rejected_total wrong_method"] == 1
            assert not [name for name in found if name.startswith("vllm:rejected")]

    run(test())


def test_a_prompt_that_is_refused_has_not_been_read() -> None:
    def full(add: Add) -> Iterable[Output]:
        error = RowError("the queue is full", status=503)
        yield Output(add.id, finish="error", error=error, last=True)

    async def test() -> None:
        async with serving(full) as server:
            assert (await server.chat()).status_code == 503
            found = await figures(server)
            assert found["rosellm:prompt_tokens_total"] == 0
            assert found["rosellm:rejected_total unavailable"] == 1

    run(test())


def test_a_client_that_leaves_is_counted() -> None:
    metrics = Metrics("m", lambda: pytest.fail("not asked for"))  # type: ignore[arg-type,return-value]
    job: Any = type("Job", (), {"prompt": [1, 2], "n": 2})()
    metrics.watch([job]).end()
    assert metrics.disconnects._value.get() == 1
    assert metrics.finished.labels("m", "abort")._value.get() == 2


def test_they_need_the_key() -> None:
    async def test() -> None:
        async with serving(says("x"), api_key="secret") as server:
            assert (await server.client.get("/metrics")).status_code == 401

    run(test())


def test_nothing_of_a_request_is_in_them() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.chat(user="alice-7", messages=[{"role": "user", "content": "topsecret"}])
            await server.client.get("/nowhere-topsecret")
            text = (await server.client.get("/metrics")).text
            assert "alice-7" not in text
            assert "topsecret" not in text

    run(test())
