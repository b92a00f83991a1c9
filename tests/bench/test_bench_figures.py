"""Percentiles, and how the times of a stream become latencies."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rosellm.bench.load import Outcome
from rosellm.bench.report import figures
from rosellm.bench.stats import median, milliseconds, percentile, summary


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101, 1000])
def test_percentiles_are_numpys(count):
    values = sorted(random.Random(count).expovariate(1) for _ in range(count))
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        expected = np.percentile(values, 100 * share)
        assert percentile(values, share) == pytest.approx(expected, abs=1e-12)


def test_a_summary_is_scaled_and_needs_no_order():
    found = milliseconds([0.003, 0.001, 0.002])
    assert found == {"mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0}
    assert median([5.0, 1.0, 3.0]) == 3.0


def test_nothing_has_no_summary():
    assert summary([]) is None


def outcome(**changes: object) -> Outcome:
    """Return a request that was sent at 10 s and gave five tokens in three chunks."""
    return Outcome(
        **{
            "started": 10.0,
            "connected": 10.001,
            "first": 10.2,
            "end": 10.6,
            "gaps": [0.1, 0.3],
            "prompt_tokens": 7,
            "output_tokens": 5,
            **changes,
        }
    )


def test_latencies_are_what_their_names_say():
    found = figures([outcome()], client_cpu=0.1)
    p50 = {name: found[f"{name}_ms"]["p50"] for name in ("ttft", "itl", "tpot", "e2e", "connect")}
    assert p50 == {"ttft": 200.0, "itl": 200.0, "tpot": 100.0, "e2e": 600.0, "connect": 1.0}


def test_rates_are_over_the_whole_run():
    found = figures([outcome(), outcome(started=11.0, first=11.5, end=12.0)], client_cpu=0.1)
    assert found["duration_s"] == 2.0
    assert found["requests_per_s"] == 1.0
    assert found["output_tokens_per_s"] == 5.0
    assert found["total_tokens_per_s"] == 12.0
    assert found["prompt_tokens"]["total"] == 14
    assert found["text_chunks"] == 6


def test_one_token_has_no_time_per_output_token():
    found = figures([outcome(output_tokens=1, gaps=[])], client_cpu=0.1)
    assert found["tpot_ms"] is None
    assert found["itl_ms"] is None


def test_failures_are_counted_by_reason_and_kept_out_of_latencies():
    bad = [Outcome(1.0, error="HTTP 503: full")] * 2 + [Outcome(1.0, error="no connection")]
    found = figures([*bad, outcome()], client_cpu=0.1)
    assert (found["requests"], found["completed"], found["failed"]) == (4, 1, 3)
    assert found["errors"] == {"HTTP 503: full": 2, "no connection": 1}
    assert found["e2e_ms"]["max"] == 600.0


def test_a_run_without_any_success_has_figures_too():
    found = figures([Outcome(1.0, error="no connection")], client_cpu=0.1)
    assert (found["completed"], found["ttft_ms"], found["requests_per_s"]) == (0, None, None)
