"""The soak's own arithmetic; the long tier runs a short one against a real server."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import BAD, LEAVING, Ask, Sample, Seen, Workload, figures, judge, slope

ARGS = argparse.Namespace(minutes=1, engine_kills=0)
FLAT = {"server": Sample(50.0, 20, 9), "engine": Sample(200.0, 4, 12)}


def quiet() -> Seen:
    seen = Seen(canaries={b"always"})
    seen.memory = {name: [(n, 50.0) for n in range(0, 10_000, 100)] for name in FLAT}
    return seen


def test_the_line_through_points() -> None:
    assert slope([(0, 5.0), (10, 5.0), (20, 5.0)]) == 0
    assert slope([(0, 1.0), (10_000, 11.0)]) == pytest.approx(10 / 1e4)
    assert slope([(5, 1.0), (5, 2.0)]) == slope([]) == 0


def test_what_is_asked_has_its_shares() -> None:
    work = Workload("m", 0)
    kinds = Counter(work.next().kind for _ in range(4000))
    assert abs(kinds["left"] / 4000 - LEAVING) < 0.03
    assert abs(kinds["bad"] / 4000 - BAD) < 0.02
    assert [Workload("m", 1).next() for _ in range(3)] == [Workload("m", 1).next()] * 3


def test_every_aim_can_be_missed() -> None:
    assert figures(quiet(), FLAT, FLAT, 0, ARGS)["missed"] == []
    leaking = quiet()
    leaking.memory["engine"] = [(n, 50 + n * 0.0011) for n in range(0, 10_000, 100)]
    assert figures(leaking, FLAT, FLAT, 0, ARGS)["missed"] == ["engine memory"]
    more = {**FLAT, "server": replace(FLAT["server"], descriptors=30)}
    assert figures(quiet(), FLAT, more, 0, ARGS)["missed"] == ["server descriptors"]
    assert figures(quiet(), FLAT, FLAT, 3, ARGS)["missed"] == ["KV blocks in use"]
    other = replace(quiet(), canaries={b"one", b"another"})
    assert figures(other, FLAT, FLAT, 0, ARGS)["missed"] == ["the same answer each time"]


def test_what_should_not_have_been_answered_is_noted() -> None:
    seen = Seen()
    judge(Ask("chat", "", b""), 200, b"data: [DONE]\n\n", seen)
    judge(Ask("bad", "", b""), 400, b"{}", seen)
    assert not seen.wrong
    judge(Ask("chat", "", b""), 200, b"data: {}\n\n", seen)
    judge(Ask("bad", "", b""), 200, b"{}", seen)
    judge(Ask("chat", "", b""), 500, b"{}", seen)
    assert seen.wrong.total() == 3


@pytest.mark.parametrize(
    ("minutes", "kills"), [(0.08, 0), pytest.param(0.3, 1, marks=pytest.mark.slow)]
)
def test_a_short_soak(minutes: float, kills: int) -> None:
    """Too short to judge memory; all else must hold."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.soak"]
    command += [f"--minutes={minutes}", f"--engine-kills={kills}"]
    done = subprocess.run(command, cwd=root, env={**os.environ}, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["requests"] > 20
    assert {"server memory", "engine memory"}.issuperset(found["missed"]), done.stdout
