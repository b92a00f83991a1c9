"""What a real engine tells of a request's time."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server
from tests.server.test_timeline import check_sum


def test_a_real_engine_tells_all_of_it(server: Server) -> None:
    body = {"model": "tiny-llama", "prompt": "once " * 60, "max_tokens": 200, "ignore_eos": True}
    asked = {**body, "return_timings": True, "n": 2, "seed": 1}
    first = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()["timings"]
    check_sum(first)
    assert first["completion_tokens"] == 400
    assert first["decode_s"] > first["prefill_s"] > 0
    # The two processes' clocks agree: little is left between what each of them has measured.
    assert first["engine_s"] < 0.2 * first["total_s"]
    again = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()["timings"]
    check_sum(again)
    assert again["cached_tokens"] > 0
    assert again["computed_tokens"] == again["prompt_tokens"] - again["cached_tokens"]


def test_the_memory_of_both_processes_is_told(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    found = {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "rosellm:process_anonymous_memory_bytes"
    }
    assert set(found) == {"server", "engine"}
    assert all(16 << 20 < size < 4 << 30 for size in found.values())
