"""How long requests over which engines died are refused."""

from __future__ import annotations

import pytest

from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server import convicts
from rosellm.roseinfer.server.convicts import KEPT_S, MOST, Convicts
from rosellm.roseinfer.server.job import Job


def job(token: int, seed: int = 0) -> Job:
    return Job([token], SamplingParams(seed=seed, max_tokens=4))


def test_for_some_minutes_whatever_seed_was_drawn() -> None:
    now = 0.0
    found = Convicts(lambda: now)
    found.add(job(1))
    now = KEPT_S - 1
    assert job(1, seed=7) in found
    assert job(2) not in found
    found.add(job(1))
    now = KEPT_S + 1
    assert job(1) in found, "it was caught again"


def test_afterwards_no_request_is_looked_at_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    found = Convicts(lambda: now)
    found.add(job(1))
    now = KEPT_S + 1
    assert job(1) not in found
    monkeypatch.delattr(convicts, "_digest")
    assert job(1) not in found


def test_they_are_not_endless() -> None:
    found = Convicts(lambda: 0.0)
    for token in range(MOST + 1):
        found.add(job(token))
    assert job(0) not in found
    assert all(job(token) in found for token in range(1, MOST + 1))
