"""A row's bits are its own through whole models: alone, in batches of 2 to 128, with any threads.

Every way to hold weights and cache, at every level. The requests are what ``test_invariance`` asks
in more ways of one level; here it is the number of rows that counts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rosellm.roseinfer.kernels.cpu.library import Library
from tests.models.architectures import BASES, write_model
from tests.tiny_models import Generated, build, generate, greedy, random_prompts, write_llama

BATCHES = [2, 3, 4, 5, 8, 13, 16, 31, 64, 127, 128]
LENGTHS = [1, 7, 16, 33, 3, 50, 2, 17]
ODD = {  # no dimension is a multiple of anything
    "hidden_size": 45,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 150,
    "vocab_size": 101,
    "mlp_bias": True,
}
FORMS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
    {"quantization": "int8"},
    {"quantization": "int4"},
    {"quantization": "int4", "head_quantization": "int4", "kv_cache_dtype": "int8"},
]

QUICK = (FORMS[0], FORMS[3], FORMS[4], FORMS[6])
forms = pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=() if form in QUICK else pytest.mark.slow) for form in FORMS],
    ids=lambda form: "-".join(form.values()),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep quantised weights out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(
    scope="module",
    params=[
        "llama",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma2", "gpt_neox")),
    ],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model: with biases, with windows and capped scores, with parallel blocks."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        return write_llama(folder, **ODD)
    return write_model(folder, BASES[request.param])


def answers(
    model: Path, form: dict[str, Any], prompts: Sequence[Sequence[int]], seats: int
) -> list[Generated]:
    """Half of them sampled, with the log-probabilities of five tokens each."""
    engine = _engine(model, tuple(form.items()), seats)
    params = [greedy(3, seed=i, temperature=float(i % 2)) for i in range(len(prompts))]
    return generate(engine, prompts, params, check=False)


@functools.lru_cache(1)
def _engine(model: Path, form: tuple[tuple[str, Any], ...], seats: int) -> Any:
    sizes = {"max_num_seqs": seats, "num_blocks": 700, "block_size": 16}
    return build(model, prefix_cache=False, max_queue_tokens=1 << 20, **sizes, **dict(form))


@forms
def test_alone_and_in_batches(level: str, model: Path, form: dict[str, Any]) -> None:
    prompts = random_prompts([LENGTHS[i % len(LENGTHS)] for i in range(128)], 97)
    alone = answers(model, form, prompts, seats=1)  # one after another
    assert len({tuple(each.tokens[0]) for each in alone}) > 40
    for count in BATCHES:
        assert answers(model, form, prompts[:count], seats=128) == alone[:count]


def counted(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call that goes from token ids to token ids."""
    calls: list[int] = []
    forward = engine.runner.forward

    def sampled(ids: Any, step: Any, rows: Any, wanted: Any) -> Any:
        calls.append(len(wanted))
        return forward.sampled(ids, step, rows, wanted)

    if forward.sampled is not None:
        monkeypatch.setattr(engine.runner, "_forward", replace(forward, sampled=sampled))
    return calls


@forms
def test_in_one_call_or_in_several(
    level: str, model: Path, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step in which nothing is done to logits, or told of them, is one native call."""
    prompts = random_prompts([LENGTHS[i % len(LENGTHS)] for i in range(20)], 97)
    engine = _engine(model, tuple(form.items()), 20)
    capped = engine.runner.model.spec.final_softcap is not None
    calls = counted(engine, monkeypatch)
    found = []
    for told in (set(), {3, 17}, set(range(20))):
        calls.clear()
        logprobs = [2 if i in told else None for i in range(20)]
        params = [
            greedy(3, seed=i, temperature=float(i % 2), logprobs=wanted)
            for i, wanted in enumerate(logprobs)
        ]
        answers = generate(engine, prompts, params, check=False)
        assert [each.logprobs != [[]] for each in answers] == [i in told for i in range(20)]
        found.append([each.tokens for each in answers])
        assert bool(calls) == (not told and not capped)
    assert found[0] == found[1] == found[2]


@forms
def test_threads_change_nothing(
    library: Library, level: str, model: Path, form: dict[str, Any]
) -> None:
    prompts = random_prompts([LENGTHS[i % len(LENGTHS)] for i in range(20)], 97)
    before, found = library.threads, []
    try:
        for count in (1, 2, 4):
            library.set_threads(count)
            found.append(answers(model, form, prompts, seats=20))
    finally:
        library.set_threads(before)
    assert found[0] == found[1]
    assert found[0] == found[2]
