"""Sampling parameters: what a request asks for, and what it gets where it asks for nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.config import SamplingDefaults as Flags
from rosellm.roseinfer.errors import ModelError
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.server.defaults import Defaults, GenerationConfig, load_defaults
from tests.server.fakes import EOS, VOCAB, says, serving


def params(
    flags: Flags | None = None, model: GenerationConfig | None = None, **fields: Any
) -> SamplingParams:
    async def ask() -> SamplingParams:
        async with serving(says("x"), flags=flags, model=model) as server:
            response = await server.complete(**fields)
            assert response.status_code == 200, response.text
            return server.engine.added[0].params

    return asyncio.run(ask())


MODEL = GenerationConfig(temperature=0.6, top_k=20, top_p=0.5, min_p=0.1, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("flags", "model", "fields", "expected"),
    [
        (None, None, {}, (1.0, 0, 1.0, 0.0, 1.0)),
        (None, MODEL, {}, (0.6, 20, 0.5, 0.1, 1.1)),
        (Flags(temperature=0.3, top_k=7, top_p=0.7), MODEL, {}, (0.3, 7, 0.7, 0.1, 1.1)),
        (
            Flags(temperature=0.3, top_k=7, top_p=0.7),
            MODEL,
            {"temperature": 0.0, "top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1},
            (0.0, 0, 1.0, 0.0, 1.0),
        ),
        (None, MODEL, {"temperature": None, "top_k": -1}, (0.6, 0, 0.5, 0.1, 1.1)),
        (None, None, {"top_k": VOCAB}, (1.0, 0, 1.0, 0.0, 1.0)),
        (None, None, {"top_p": 0}, (1.0, 1, 1.0, 0.0, 1.0)),
    ],
)
def test_request_before_flags_before_model_before_openai(
    flags: Any, model: Any, fields: dict[str, Any], expected: tuple[float, ...]
) -> None:
    got = params(flags, model, **fields)
    assert (got.temperature, got.top_k, got.top_p, got.min_p, got.repetition_penalty) == expected


@pytest.mark.parametrize(
    ("asked", "do_sample", "flags", "model", "expected"),
    [
        (None, None, Flags(do_sample=False), MODEL, 0.0),
        (None, None, Flags(do_sample=False, temperature=0.7), MODEL, 0.0),
        (0.4, None, Flags(do_sample=False), MODEL, 0.4),
        (None, None, Flags(), GenerationConfig(do_sample=False, temperature=0.6), 0.0),
        (None, None, Flags(do_sample=True), GenerationConfig(do_sample=False), 1.0),
        (None, None, Flags(temperature=0.2), GenerationConfig(do_sample=False), 0.2),
        (None, True, Flags(do_sample=False), GenerationConfig(), 1.0),
        (0.9, False, Flags(), GenerationConfig(), 0.0),
    ],
)
def test_do_sample(
    asked: float | None, do_sample: bool | None, flags: Flags, model: Any, expected: float
) -> None:
    assert Defaults(flags, model).temperature(asked, do_sample) == expected


def test_eos_ends_an_answer_unless_told_otherwise() -> None:
    assert params().stop_token_ids == (EOS,)
    assert params(ignore_eos=True).stop_token_ids == ()
    assert params(ignore_eos=True, stop_token_ids=[5]).stop_token_ids == (5,)
    assert params(Flags(stop_on_eos=False)).stop_token_ids == ()
    assert params(Flags(stop_on_eos=False), ignore_eos=False).stop_token_ids == (EOS,)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1, -(2**63)])
def test_any_int64_is_a_seed(seed: int) -> None:
    first, second = params(seed=seed).seed, params(seed=seed).seed
    assert first == second
    assert 0 <= first < 2**63


def test_an_unseeded_request_gets_a_seed_of_its_own() -> None:
    assert len({params().seed for _ in range(4)}) == 4


def test_everything_else_is_passed_on() -> None:
    got = params(
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100, "8": 1.5},
        min_tokens=3,
        max_tokens=9,
    )
    assert (got.presence_penalty, got.frequency_penalty) == (0.5, -0.5)
    assert got.logit_bias == ((7, -100.0), (8, 1.5))
    assert (got.min_tokens, got.max_tokens) == (3, 9)


def test_priority_and_salt_reach_the_engine() -> None:
    async def test() -> None:
        async with serving(says("x")) as server:
            await server.chat(priority=-3, cache_salt="mine", n=2)
            add = server.engine.added[0]
            assert (add.priority, add.cache_salt, add.n) == (-3, "mine", 2)

    asyncio.run(test())


# -- from a model's folder -------------------------------------------------------------------


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_eos_of_the_folder_is_united_with_the_tokenizers(tmp_path: Path) -> None:
    write(tmp_path, generation_config={"eos_token_id": [3, 4]}, config={"eos_token_id": 9})
    assert load_defaults(tmp_path, Flags(), (5,)).eos_ids == (3, 4, 5)
    write(tmp_path, generation_config={"temperature": 0.5, "max_length": 7})
    loaded = load_defaults(tmp_path, Flags(), ())
    assert loaded.eos_ids == (9,)
    assert loaded.temperature(None) == 0.5


def test_a_checkpoint_file_has_no_defaults(tmp_path: Path) -> None:
    assert load_defaults(tmp_path / "model.pt", Flags(), (5,)).eos_ids == (5,)


@pytest.mark.parametrize("content", ['{"top_p": "x"}', '{"temperature": -1}', "{", "[]"])
def test_a_broken_generation_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_defaults(tmp_path, Flags(), ())
