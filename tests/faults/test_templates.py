"""A server whose model brought a hostile chat template answers everybody else as ever."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.e2e.conftest import Server
from tests.faults.conftest import BOMBS
from tests.faults.neighbours import undisturbed

CHAT = "/v1/chat/completions"


ROUTES = [CHAT, f"{CHAT}/render", "/tokenize"]


def is_slow(bomb: str, path: str) -> bool:
    """One takes the second that a template may take."""
    return bomb == "endless" and path != CHAT


@pytest.mark.parametrize(
    ("bomb", "path"),
    [
        pytest.param(bomb, path, marks=pytest.mark.slow if is_slow(bomb, path) else ())
        for bomb in BOMBS
        for path in ROUTES
    ],
)
def test_one_refusal_and_nothing_else(guarded: Server, path: str, bomb: str) -> None:
    """On every route that renders; while it does, the event loop answers others."""
    body = {
        "model": "tiny-llama",
        "messages": [{"role": "user", "content": bomb}],
    }
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(guarded.url + path, json=body, timeout=30))

    asking = threading.Thread(target=ask)
    asking.start()
    slowest = 0.0
    while asking.is_alive():
        begun = time.monotonic()
        assert httpx.get(f"{guarded.url}/livez", timeout=10).status_code == 200
        slowest = max(slowest, time.monotonic() - begun)
    asking.join()
    [answer] = answers
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("chat template: ")
    assert "<class" not in answer.text
    assert slowest < 0.9  # less than the second that a template may take, even on a busy machine


def test_neighbours_are_not_disturbed(guarded: Server) -> None:
    with undisturbed(guarded):
        test_one_refusal_and_nothing_else(guarded, CHAT, "endless")
        test_one_refusal_and_nothing_else(guarded, CHAT, "large")
