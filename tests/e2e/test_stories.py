"""A real trained model through the whole house, against recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server


@pytest.mark.slow  # tests/library/test_stories.py has it without a server
def test_stories260k_gives_the_recorded_text(
    launch: Callable[..., Server], shared_data: Path
) -> None:
    folder = shared_data / "stories260K"
    cases = json.loads((folder / "expected.json").read_text())["cases"]
    server = launch(str(folder / "hf"), "--dtype", "float32", model="hf")
    for case in cases:
        answer = server.openai.completions.create(
            model="hf",
            prompt=case["prompt"],
            max_tokens=case["max_tokens"],
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert case["prompt"] + answer.choices[0].text == case["full_text"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(case["prompt_token_ids"])
        assert answer.usage.completion_tokens == len(case["greedy_token_ids"])
