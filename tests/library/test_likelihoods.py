"""Log-likelihoods, by the library and by ``echo``, against transformers: a real model and random
ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from rosellm import LLM
from rosellm.roseinfer.server import create_app
from tests.e2e.conftest import write_tokenizer
from tests.models.architectures import BASES, write_model
from tests.models.oracle import Oracle

TEXTS = [
    "Once upon a time, there was a little girl who had a red ball.",
    "The dog said: 'It is 7 o'clock!' — naïve café, 東京.",
    "a",
]


@pytest.fixture(scope="module", params=["stories260K", "llama", "gemma3", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "stories260K":
        shared: Path = request.getfixturevalue("shared_data")
        return shared / "stories260K" / "hf"
    folder = tmp_path_factory.mktemp("likelihoods") / str(request.param)
    folder.mkdir()
    size = write_tokenizer(folder / "tokenizer.json")
    return write_model(folder, {**BASES[request.param], "vocab_size": size})


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", device="cpu", max_num_batched_tokens=24) as llm:
        yield llm


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def wanted(oracle: Oracle, ids: list[int]) -> list[float]:
    logprobs = oracle.logits(ids).log_softmax(-1)
    return [logprobs[i, token].item() for i, token in enumerate(ids[1:])]


@pytest.mark.parametrize("text", TEXTS)
def test_score_equals_transformers(text: str, llm: LLM, oracle: Oracle) -> None:
    score = llm.score(text)
    logprobs = wanted(oracle, list(score.token_ids))
    assert score.logprobs[0] is None
    assert list(score.logprobs[1:]) == pytest.approx(logprobs, abs=1e-4)
    assert score.total == pytest.approx(sum(logprobs), abs=1e-4 * max(len(logprobs), 1))


def test_a_continuation_is_scored_given_its_prompt(llm: LLM, oracle: Oracle) -> None:
    prompt, continuation = TEXTS[0].split(" girl")[0], " girl who"
    score = llm.score(prompt, continuation)
    ids = list(llm.score(prompt + continuation).token_ids)
    assert ids[-len(score.token_ids) :] == list(score.token_ids)
    assert list(score.logprobs) == pytest.approx(
        wanted(oracle, ids)[-len(score.token_ids) :], abs=1e-4
    )


@pytest.mark.parametrize("text", TEXTS)
def test_echo_equals_transformers(text: str, llm: LLM, oracle: Oracle, folder: Path) -> None:
    """As evaluation harnesses ask: the prompt's tokens, and one more."""
    client = TestClient(create_app(llm))
    asked = {"model": folder.name, "prompt": text, "echo": True, "max_tokens": 1, "logprobs": 1}
    body = client.post("/v1/completions", json={**asked, "temperature": 0}).json()
    found = body["choices"][0]["logprobs"]["token_logprobs"]
    ids = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    ids.append(int(oracle.logits(ids)[-1].argmax()))
    assert found[0] is None
    assert found[1:] == pytest.approx(wanted(oracle, ids)[: len(found) - 1], abs=1e-4)
    assert len(found) >= len(ids) - 1
