"""``GET /metrics``: what happened is what is counted, under both prefixes, and never who it was."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import rosellm
from rosellm.roseinfer.messages import Add, Output, RowError, Stats, Timings
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server.delta import Delta
from rosellm.roseinfer.server.job import Job
from rosellm.roseinfer.server.loop_lag import PERIOD_S, LoopLag
from rosellm.roseinfer.server.metrics import Metrics
from rosellm.roseinfer.server.state_metrics import Source
from rosellm.roseinfer.server.step_sizes import StepSizes
from tests.server.fakes import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HELLO,
    Exchange,
    Server,
    says,
    serving,
    silent,
)

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
    "request_time_per_output_token_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "request_inference_time_seconds_count",
    "request_params_n_sum",
    "request_params_max_tokens_sum",
    "request_max_num_generation_tokens_sum",
    "iteration_tokens_total_sum",
    "spec_decode_num_drafts_total",
    "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total",
    "request_success_total stop",
    "cache_config_info 16 256",
]
"""vLLM v1's names, as its documentation lists them."""


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


EVERYWHERE = {"model_name": "m", "engine": "0"}


async def figures(server: Server) -> dict[str, float]:
    """Every sample's value, by its name and its labels but for the model."""
    answer = await server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            if sample.name.startswith(("rosellm:", "vllm:")):
                assert sample.labels.items() >= EVERYWHERE.items()
            labels = {
                name: value for name, value in sample.labels.items() if name not in EVERYWHERE
            }
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def test_steps_are_counted_by_their_size() -> None:
    sizes = StepSizes()
    for steps, tokens in (
        (1, 8),
        (1, 8),
        (2, 9),
        (3, 0),
        (1, 20_000),
    ):  # the last one of a new engine
        sizes.see(Stats(steps=steps, batched_tokens=tokens))
    assert sizes.tokens == 20_017
    counts = dict(sizes.buckets())
    assert [counts[bound] for bound in ("1.0", "8.0", "16.0", "16384.0", "+Inf")] == [0, 1, 2, 2, 3]


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


@pytest.mark.parametrize(
    ("path", "body", "aborted"),
    [
        (CHAT, {"messages": HELLO, "n": 2}, 2),
        (COMPLETIONS, {"prompt": "hi", "stream": True}, 1),
        (EMBEDDINGS, {"input": "hi"}, 0),
    ],
)
def test_a_client_that_leaves_is_counted(path: str, body: dict[str, Any], aborted: int) -> None:
    async def test() -> None:
        async with serving(silent) as server:
            exchange = Exchange(server.app, path, {"model": "m", **body})
            while not server.engine.added:
                await asyncio.sleep(0)
            exchange.leave()
            await exchange.task
            found = await figures(server)
            assert found["rosellm:client_disconnects_total"] == 1
            assert found.get("rosellm:request_success_total abort", 0) == aborted

    run(test())


def test_what_the_server_breaks_off_is_no_client_that_left() -> None:
    async def test() -> None:
        async with serving(silent) as server:
            body = {"model": "m", "messages": HELLO}
            exchange = Exchange(server.app, CHAT, body)
            while not server.engine.added:
                await asyncio.sleep(0)
            exchange.task.cancel()
            await asyncio.wait({exchange.task})
            assert (await figures(server))["rosellm:client_disconnects_total"] == 0

    run(test())


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


def test_times_by_phase_are_those_that_the_engine_told() -> None:
    metrics = Metrics("m", Source(Stats))
    timing = metrics.watch([Job([1], SamplingParams(seed=0, max_tokens=5))])
    timing.see(Delta(0, "a", ids=(1,), timings=Timings(queue=3, prefill=4)))
    timing.see(Delta(0, "b", ids=(2,), finish="stop", timings=Timings(queue=3, prefill=4)))
    for histogram, least in (
        (metrics.queue_time, 3),
        (metrics.prefill_time, 4),
        (metrics.inference_time, 4),
        (metrics.decode_time, 0),
    ):
        assert least <= histogram._sum.get() < least + 0.5
    assert metrics.longest_generation._sum.get() == 2


def test_engine_restarts_are_counted() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            assert (await figures(server))["rosellm:engine_restarts_total"] == 0
            server.service.pipeline.on_restart()
            found = await figures(server)
            assert found["rosellm:engine_restarts_total"] == 1
            assert "vllm:engine_restarts_total" not in found

    run(test())


def test_the_process_is_told_of() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            first = await figures(server)
            ballast = b"x" * (64 << 20)
            second = await figures(server)
            grown = second[MEMORY + " server"] - first[MEMORY + " server"]
            assert len(ballast) - (8 << 20) < grown < len(ballast) + (8 << 20)
            assert MEMORY + " engine" not in first, "it has no process here"
            server.engine.pid = os.getpid()  # type: ignore[attr-defined]
            third = await figures(server)
            same = pytest.approx(third[MEMORY + " server"], rel=0.05)
            assert third[MEMORY + " engine"] == same
            server.engine.pid = 2**22 + 1  # type: ignore[attr-defined]
            assert MEMORY + " engine" not in await figures(server)
            assert 0 < first["rosellm:uptime_seconds"] < second["rosellm:uptime_seconds"]
            assert first[f"rosellm:build_info cpu float32 fp_test {rosellm.__version__}"] == 1
            assert first["process_open_fds"] > 0

    run(test())


MEMORY = "rosellm:process_anonymous_memory_bytes"


@pytest.mark.alone
def test_what_blocks_the_loop_is_seen_as_its_lag() -> None:
    seen: list[float] = []

    async def test() -> None:
        lag = LoopLag(seen.append)
        with lag.measured():
            await asyncio.sleep(0.05)
            time.sleep(0.2)
            await asyncio.sleep(0.02)
        count = len(seen)
        await asyncio.sleep(0.05)
        assert len(seen) == count, "it has ended"

    run(test())
    assert 0.2 - PERIOD_S <= max(seen) < 0.4
    assert min(seen) < 0.05


def test_no_label_is_anything_but_ours() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.chat(user="u", cache_salt="s", request_id="r")
            text = (await server.client.get("/metrics")).text
            families = text_string_to_metric_families(text)
            labels = {
                name for family in families for each in family.samples for name in each.labels
            }
            assert labels == LABELS

    run(test())


LABELS = {
    *("model_name", "engine", "le", "finished_reason", "process"),
    *("version", "fingerprint", "dtype", "device", "block_size", "num_gpu_blocks"),
}
