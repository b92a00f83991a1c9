"""Stop strings with steps planned ahead: what came after a match was never there."""

from __future__ import annotations

from pathlib import Path

from rosellm import LLM, SamplingParams
from rosellm.roseinfer.llm.results import Choice
from tests.library.conftest import idle

PROMPTS = ["a b c", "one two three four", "the garden"]


def told(llm: LLM, params: SamplingParams) -> list[tuple[Choice, ...]]:
    return [result.choices for result in llm.generate(PROMPTS, params)]


def decided(llm: LLM) -> str:
    """Whether steps are planned ahead, by the engine's own account."""
    [value] = [each.value for each in llm.service.ready.decisions if each.name == "overlap"]
    return value


def test_overlapped_equals_plain(folder: Path, llm: LLM) -> None:
    whole = SamplingParams(max_tokens=40, seed=3, n=2)
    texts = [choice.text for choices in told(llm, whole) for choice in choices]
    stops = [text[len(text) // 2 :][:2] for text in texts if len(text) > 4]
    stopping = SamplingParams(max_tokens=40, seed=3, n=2, stop=stops[:4], logprobs=2)
    plain = [told(llm, params) for params in (whole, stopping)]
    ends = [choice.finish_reason for choices in plain[1] for choice in choices]
    assert "stop" in ends
    with LLM(folder, device="cpu", max_num_seqs=16, overlap="on") as ahead:
        assert (decided(llm), decided(ahead)) == ("off", "on")
        assert [told(ahead, params) for params in (whole, stopping)] == plain
        idle(ahead)
