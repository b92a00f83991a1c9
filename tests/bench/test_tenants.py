"""The arithmetic of what tenants cost each other, and its clients over a server that is made up."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tenants
from benchmarks.tenants import (
    EQUALS,
    HOSTILE,
    QUIET,
    Load,
    Model,
    Tenant,
    jain,
    judge,
    overlapping,
    p99_ms,
    report,
    served,
)
from rosellm.bench import loop
from rosellm.bench.exchange import Server
from rosellm.bench.record import Recorder, Usage
from tests.bench.fake_server import FakeServer, running

MODEL = Model("fake", tuple(range(10, 20)), 1024)
GOOD: dict[str, Any] = {
    "fairness": {
        "seconds": 1.0,
        "served_tokens": {"a": 10, "hostile": 11},
        "waiting_share": {"a": 1.0, "hostile": 1.0},
        "jain": 0.99,
    },
    "neighbour": {
        "streams": 4,
        "floor_ms": 2.0,
        "alone_p99_ms": 3.0,
        "beside_p99_ms": 5.0,
        "stretch": 1.7,
    },
    "target": {
        "prompts": 3,
        "prompt_tokens": 63,
        "prompt_s": 0.5,
        "p99_ms": 5.9,
        "target_ms": 6.0,
    },
}


def client(url: str) -> Tenant:
    return Tenant(Server.at(url, "sk"), MODEL, random.Random(1))


def test_jains_index() -> None:
    assert jain([7, 7, 7]) == pytest.approx(1)
    assert jain([5, 0, 0, 0]) == pytest.approx(1 / 4)
    assert jain([1, 2, 3]) == pytest.approx(36 / 42)
    assert jain([0, 0]) == 0


def test_the_99th_percentile_is_near_the_end() -> None:
    assert p99_ms([n / 1000 for n in range(100, -1, -1)]) == pytest.approx(99)
    assert p99_ms([0.001] * 99 + [1.0]) == pytest.approx(1 + 0.01 * 999)
    with pytest.raises(RuntimeError, match="nothing was streamed"):
        p99_ms([])


def test_what_a_request_was_served_in_a_window() -> None:
    answer = Recorder(times=[1.0, 2.0, 3.0, 4.0], usage=Usage(20, 8))
    assert served(20, answer, 0, 9) == 28
    assert served(20, answer, 0, 2) == 24
    assert served(20, answer, 1, 3) == 4  # the prompt came before
    assert served(20, Recorder(times=[1.0]), 0, 9) == 21  # not over: a chunk is a token
    assert served(20, Recorder(), 0, 9) == 0


def test_only_gaps_beside_a_prompt_count() -> None:
    gaps = [(0.0, 1.0), (1.0, 3.0), (3.0, 3.5), (3.5, 9.0), (9.0, 9.5)]
    assert overlapping(gaps, [(2.0, 2.5), (4.0, 5.0)]) == [2.0, 5.5]
    assert overlapping(gaps, []) == []


def test_gaps_are_within_a_stream_and_a_window() -> None:
    tenant = client("http://127.0.0.1:1")
    tenant.asked = [(1, Recorder(times=[1.0, 2.0, 4.0])), (1, Recorder(times=[7.0, 7.5, 99.0]))]
    assert list(tenant.gaps(0.5, 10)) == [1.0, 2.0, 0.5]
    assert list(tenant.gaps(1.5, 10)) == [2.0, 0.5]


def test_every_aim_can_be_missed() -> None:
    assert judge(GOOD) == []
    for section, name, value, missed in (
        ("fairness", "waiting_share", {"a": 0.5, "hostile": 1.0}, "something to wait for"),
        ("fairness", "jain", 0.94, "fairness"),
        ("neighbour", "stretch", 2.1, "neighbour"),
        ("target", "p99_ms", 6.1, "target"),
    ):
        bad = copy.deepcopy(GOOD)
        bad[section][name] = value
        assert judge(bad) == [missed]
        assert report({**bad, "missed": judge(bad)})[-1].endswith(missed)


def test_a_client_keeps_its_requests_open() -> None:
    with running(FakeServer(first_s=0.01, gap_s=0.001)) as server:
        both = {name: client(server.url) for name in (*EQUALS, HOSTILE, QUIET)}
        fair = loop.run(tenants.fairness(both, 0.2, 0.02))
        beside = loop.run(tenants.neighbour(both, 0.1, 0.02))
        within = loop.run(tenants.target(both, 0.1, 0.02, 1000.0))
    assert fair["served_tokens"].keys() == fair["waiting_share"].keys() == {*EQUALS, HOSTILE}
    assert min(fair["served_tokens"].values()) > 0
    assert beside["floor_ms"] >= 1
    assert beside["alone_p99_ms"] >= beside["floor_ms"]
    assert within["prompts"] >= 1
    assert within["prompt_tokens"] == MODEL.length - 1
    assert {len(asked["prompt"]) for asked in server.requests} >= {MODEL.length - 1}
    assert all(head["authorization"] == "bearer sk" for head in server.headers)


def test_a_refusal_ends_it() -> None:
    async def ask(url: str) -> None:
        async with tenants.asking({QUIET: (client(url), Load(1, (1, 1), (1, 1)))}):
            await asyncio.sleep(0.2)

    with (
        running(FakeServer(fail={1: "busy"})) as server,
        pytest.raises(ExceptionGroup) as caught,
    ):
        loop.run(ask(server.url))
    assert "503 the queue is full" in str(caught.value.exceptions[0])


@pytest.mark.slow
def test_a_short_run() -> None:
    """Too short to judge, and other tests run beside it: every figure is there."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.tenants", "--seconds=2"]
    done = subprocess.run(command, cwd=root, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["missed"] == judge(found)
    assert found["target"]["gaps"] > 0
    assert found["target"]["target_ms"] == pytest.approx(
        tenants.TARGET_STEPS * found["neighbour"]["floor_ms"], abs=0.1
    )
