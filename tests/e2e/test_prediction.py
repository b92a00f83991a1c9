"""Drafts in a real server over the demo model: the same answers in fewer steps.

Steps are counted, not timed. What is "predicted" here is the model's own answer with some of its
words changed, so that what it says need not be known.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rosellm.roseinfer.demo import demo_model
from tests.e2e.conftest import Server, start_server

STORY = [{"role": "user", "content": "Tell me a long story about a rose and a bee."}]
WORDS_ONLY = {
    str(token["id"]): -100
    for token in json.loads(Path(demo_model(), "tokenizer.json").read_text())["added_tokens"]
}
LONG: dict[str, Any] = {"max_tokens": 400, "logit_bias": WORDS_ONLY}
GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.3}
SEEDED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 11}


@pytest.fixture(scope="module")
def looking_up() -> Iterator[Server]:
    running = start_server("rosellm-demo", "--speculate", "ngram", model="rosellm-demo")
    yield running
    assert running.stop() == 0


def ask(server: Server, **fields: Any) -> tuple[dict[str, Any], int]:
    """An answer, and the steps it took."""
    before = server.wait_until_idle()["steps"]
    body = {"model": server.model, "messages": STORY, "return_token_ids": True, **fields}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer, server.wait_until_idle()["steps"] - before


def with_words_changed(text: str, count: int) -> str:
    words = text.split(" ")
    rng = random.Random(3)
    for index, at in enumerate(rng.sample(range(len(words)), count)):
        words[at] = ["elephant", "seven", "under", "bright", "Paris"][index % 5]
    return " ".join(words)


@pytest.mark.parametrize("how", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_an_edit_takes_at_most_half_the_steps(demo: Server, how: dict[str, Any]) -> None:
    plain, steps = ask(demo, **LONG, **how)
    assert plain["usage"]["completion_tokens"] == steps == 400
    before = with_words_changed(plain["choices"][0]["message"]["content"], 10)
    prediction = {"type": "content", "content": before}
    predicted, fewer = ask(demo, **LONG, **how, prediction=prediction)
    assert predicted["choices"] == plain["choices"]
    assert fewer <= steps / 2
    details = predicted["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 250
    assert details["rejected_prediction_tokens"] >= 10
    assert predicted["usage"]["completion_tokens"] == 400


def test_a_wrong_prediction_changes_nothing(demo: Server) -> None:
    plain, steps = ask(demo, max_tokens=60, **SEEDED)
    prediction = {"type": "content", "content": "def f(x):\n    return [x, x ** 2]\n" * 20}
    predicted, as_many = ask(demo, max_tokens=60, **SEEDED, prediction=prediction)
    assert predicted["choices"] == plain["choices"]
    assert as_many <= steps


def test_a_stop_in_the_middle_of_a_draft(demo: Server) -> None:
    fields = {**LONG, **SEEDED}
    plain, _ = ask(demo, **fields)
    text = plain["choices"][0]["message"]["content"]
    fields["stop"] = text[100:120]
    cut, _ = ask(demo, **fields)
    predicted, _ = ask(demo, **fields, prediction={"type": "content", "content": text})
    assert predicted["choices"] == cut["choices"]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert predicted["usage"]["completion_tokens"] == cut["usage"]["completion_tokens"]


@pytest.mark.slow  # tests/models/test_speculation.py has them without a server
def test_lookups_draft_what_the_prompt_holds(demo: Server, looking_up: Server) -> None:
    """A model this small repeats itself when it is greedy."""
    for fields in ({"max_tokens": 200, "ignore_eos": True, "temperature": 0}, SEEDED):
        plain, steps = ask(demo, **fields)
        looked, fewer = ask(looking_up, **fields)
        assert looked["choices"] == plain["choices"]
        assert fewer <= steps
    health = looking_up.health()
    assert health["drafted"] >= health["accepted"] > 50
