"""A real trained model, scored by the library, against recorded log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rosellm import LLM


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Iterator[tuple[LLM, dict[str, Any]]]:
    folder = shared_data / "stories260K"
    with LLM(folder / "hf", dtype="float32", device="cpu") as llm:
        yield llm, json.loads((folder / "expected.json").read_text())


def test_a_text_has_the_recorded_logprobs(stories: tuple[LLM, dict[str, Any]]) -> None:
    llm, recorded = stories
    expected = recorded["prompt_logprobs"]
    score = llm.score(expected["text"])
    assert list(score.token_ids) == expected["token_ids"]
    np.testing.assert_allclose(score.logprobs[1:], expected["logprobs"][1:], atol=1e-4)


def test_greedy_answers_have_the_recorded_logprobs(stories: tuple[LLM, dict[str, Any]]) -> None:
    llm, recorded = stories
    cases = recorded["cases"]
    prompts = [case["prompt_token_ids"] for case in cases]
    scores = llm.score(prompts, [case["greedy_token_ids"] for case in cases])
    for case, score in zip(cases, scores, strict=True):
        assert score.is_greedy
        np.testing.assert_allclose(score.logprobs, case["greedy_logprobs"], atol=1e-4)
