"""Answers under a grammar beside others, with steps planned ahead where nothing stands against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rosellm.roseinfer.config import EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.engine.build import build_engine
from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.text.grammar_source import JsonSchema
from tests.engine.late import Late
from tests.grammar.conftest import add, answers

SCHEMA = JsonSchema(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def late(folder: Path) -> Callable[[str], tuple[EngineCore, Late]]:
    def build(overlap: str) -> tuple[EngineCore, Late]:
        scheduling = SchedulerConfig(overlap=overlap)  # type: ignore[arg-type]
        model = ModelConfig(model=str(folder), device="cpu")
        core = build_engine(EngineConfig(model=model, scheduler=scheduling))
        late = Late(core.runner)
        core._runner = late
        return core, late

    return build


def requests() -> list[Add]:
    return [
        add(1, None, max_tokens=40, stop_token_ids=()),
        add(2, SCHEMA, n=2, max_tokens=40, logprobs=1),
        add(3, None, max_tokens=90, presence_penalty=0.5, stop_token_ids=()),
        add(4, SCHEMA, max_tokens=12),
    ]


def test_overlapped_equals_plain(late: Callable[[str], tuple[EngineCore, Late]]) -> None:
    core, device = late("off")
    plain = {key: text for each in requests() for key, text in answers(core, each).items()}
    assert device.deepest == 1
    core, device = late("on")
    assert answers(core, *requests()) == plain
    assert device.deepest == 2, "what has no grammar goes on ahead"
    assert plain[2, 0].complete
    assert plain[2, 1].complete


def test_a_mask_is_made_of_what_was_sampled(
    late: Callable[[str], tuple[EngineCore, Late]],
) -> None:
    """While a grammar is followed, each step is read before the next one is planned."""
    core, device = late("on")
    (text,) = answers(core, add(1, SCHEMA)).values()
    assert text.complete
    assert device.deepest == 1
