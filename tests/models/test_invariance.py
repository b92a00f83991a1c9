"""The promises: the same prompt, parameters and seed give the same bits, however they are run.

Every test compares tokens and log-probabilities, as floats, with those of the request run
alone: whole, in an engine without a prefix cache.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm.roseinfer.engine.core import EngineCore
from rosellm.roseinfer.request import SamplingParams
from tests.models.architectures import BASES, write_model
from tests.tiny_models import (
    Generated,
    build,
    generate,
    greedy,
    random_prompts,
    read_spec,
    write_gpt2,
    write_llama,
)

LLAMA_ODD = {
    "hidden_size": 45,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 57,
    "vocab_size": 101,
}
GPT2_ODD = {"n_embd": 45, "n_head": 3, "n_inner": 57, "vocab_size": 101}
LLAMA_WIDE = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 700,
    "num_hidden_layers": 3,
    "vocab_size": 1003,
    "tie_word_embeddings": True,
}
GPT2_WIDE = {"n_embd": 384, "n_head": 6, "n_layer": 3, "vocab_size": 2011}

ARCHITECTURES = [kind for kind in BASES if kind not in ("llama", "gemma3 with images")]

slow = pytest.mark.slow
INT8_KV = (("kv_cache_dtype", "int8"),)
REFERENCE = (("kernels", "reference"),)

Options = tuple[tuple[str, str], ...]


def _name(*parts: str, options: Options = ()) -> str:
    return "-".join([*parts, *(value for _, value in options)])


MODELS = [
    pytest.param((kind, dtype, *rest), marks=marks, id=_name(kind, dtype, options=sum(rest, ())))
    for kind, dtype, marks, *rest in [
        ("llama-odd", "float32", ()),
        ("llama-odd", "bfloat16", slow),
        ("llama-odd", "float16", slow),
        ("gpt2-odd", "float32", slow),
        ("gpt2-odd", "bfloat16", ()),
        ("gpt2-odd", "float16", slow),
        ("llama-wide", "float32", slow),
        ("llama-wide", "bfloat16", ()),
        ("gpt2-wide", "float32", slow),
        ("gpt2-wide", "bfloat16", slow),
        ("stories", "float32", slow),
        ("stories", "bfloat16", slow),
        ("llama-odd", "bfloat16", (), INT8_KV),
        ("gpt2-odd", "float32", slow, INT8_KV),
        ("llama-wide", "bfloat16", slow, INT8_KV),
        ("llama-odd", "float32", slow, REFERENCE),
        ("gpt2-odd", "bfloat16", slow, REFERENCE),
        ("llama-odd", "bfloat16", slow, INT8_KV + REFERENCE),
        *((kind, dtype, slow) for kind in ARCHITECTURES for dtype in ("float32", "bfloat16")),
        *((kind, "bfloat16", slow, INT8_KV) for kind in ARCHITECTURES),
    ]
]

MOST_TOKENS = tuple(token for token in range(2011) if token % 3)
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 1},
    {"temperature": 0.7, "top_k": 7, "logprobs": 20},
    {"temperature": 1.1, "min_p": 0.05, "presence_penalty": 0.7, "logprobs": 0},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "frequency_penalty": -0.4},
    {"temperature": 1.0, "logit_bias": ((5, 3.0), (77, -50.0), (9, 2.5))},
    {"temperature": 1.0, "min_tokens": 4, "stop_token_ids": MOST_TOKENS},
    {"temperature": 0.0, "frequency_penalty": 1.0, "min_tokens": 2, "stop_token_ids": (8, 9, 40)},
]
LENGTHS = [1, 40, 7, 16, 90, 3, 33, 17, 2, 64, 129, 5, 15, 32, 48, 11, 1, 77, 24, 150]
NEW = 6


@dataclass(frozen=True)
class Subject:
    """A model to make promises about."""

    folder: Path
    dtype: str
    options: Options = ()

    def build(self, *, block_size: int = 16, **settings: Any) -> EngineCore:
        """An engine whose pool, unless told otherwise, holds 4096 tokens: room for all."""
        pool = {"block_size": block_size, "num_blocks": 4096 // block_size}
        return build(self.folder, dtype=self.dtype, **{**pool, **dict(self.options), **settings})

    @functools.cached_property
    def vocab_size(self) -> int:
        return read_spec(self.folder).vocab_size

    @functools.cached_property
    def grows(self) -> bool:
        """Whether sequences outgrow a pool that had room for their prompts: a window's do not."""
        return any(group.window is None for group in read_spec(self.folder).kv_groups)

    def params(self, count: int, max_tokens: int = NEW) -> list[SamplingParams]:
        """A different mix for each request; ten kinds, and seeds of their own."""
        every = []
        for index in range(count):
            mix = PARAMS[index % len(PARAMS)]
            stops = tuple(t for t in mix.get("stop_token_ids", ()) if t < self.vocab_size)
            every.append(
                greedy(max_tokens, **{"seed": 1000 + index, **mix, "stop_token_ids": stops})
            )
        return every

    def prompts(self, count: int, seed: int = 0) -> list[list[int]]:
        lengths = [LENGTHS[i % len(LENGTHS)] for i in range(count)]
        return random_prompts(lengths, self.vocab_size, seed)

    def alone(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams] | None = None
    ) -> list[Generated]:
        """What each request gives by itself."""
        chosen = params or self.params(len(prompts))
        return [
            _alone(self, tuple(prompt), own) for prompt, own in zip(prompts, chosen, strict=True)
        ]

    def run(
        self, core: EngineCore, prompts: Sequence[Sequence[int]], **how: Any
    ) -> list[Generated]:
        return generate(core, prompts, self.params(len(prompts)), **how)


@functools.cache
def _alone(subject: Subject, prompt: tuple[int, ...], params: SamplingParams) -> Generated:
    return generate(_bare_engine(subject), [prompt], params)[0]


@functools.cache
def _bare_engine(subject: Subject) -> EngineCore:
    return subject.build(prefix_cache=False, num_blocks=16)


@pytest.fixture(scope="module", params=MODELS)
def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    kind, dtype, *options = request.param
    if kind == "stories":
        folder = request.getfixturevalue("shared_data") / "stories260K" / "hf"
    elif kind in BASES:
        folder = write_model(tmp_path_factory.mktemp(kind), BASES[kind])
    else:
        write = write_llama if kind.startswith("llama") else write_gpt2
        sizes = {"llama-odd": LLAMA_ODD, "llama-wide": LLAMA_WIDE, "gpt2-odd": GPT2_ODD,
                 "gpt2-wide": GPT2_WIDE}[kind]  # fmt: skip
        wide = kind.endswith("wide")
        folder = write(tmp_path_factory.mktemp(kind), std=0.08 if wide else 0.2, **sizes)
    yield Subject(folder, dtype, *options)
    _alone.cache_clear()
    _bare_engine.cache_clear()


def test_the_requests_are_worth_comparing(subject: Subject) -> None:
    """Answers differ from each other, sampled ones differ by seed, and some stop early."""
    prompts = subject.prompts(20)
    answers = subject.alone(prompts)
    assert len({tuple(answer.tokens[0]) for answer in answers}) > 15
    assert {answer.finish[0] for answer in answers} == {"stop", "length"}
    hot = [greedy(NEW, temperature=1.5, seed=seed) for seed in range(8)]
    assert len({tuple(a.tokens[0]) for a in subject.alone([prompts[1]] * 8, hot)}) > 4


@pytest.mark.parametrize("size", [2, 17, 40])
def test_batched_equals_single(subject: Subject, size: int) -> None:
    prompts = subject.prompts(size)
    core = subject.build(max_num_seqs=size)
    assert subject.run(core, prompts) == subject.alone(prompts)


def test_whatever_comes_and_goes_meanwhile(subject: Subject) -> None:
    """Requests that arrive one by one, and fewer seats than requests."""
    prompts = subject.prompts(20)
    core = subject.build(max_num_seqs=6)
    arrivals = [(7 * i) % 23 for i in range(20)]
    assert subject.run(core, prompts, arrivals=arrivals) == subject.alone(prompts)


@pytest.mark.parametrize("budget", [1, 7, 16, 33])
def test_chunked_equals_whole(subject: Subject, budget: int) -> None:
    prompts = subject.prompts(4 if budget == 1 else 12)
    core = subject.build(max_num_batched_tokens=budget, prefix_cache=False)
    assert subject.run(core, prompts) == subject.alone(prompts)


@pytest.mark.parametrize("block_size", [4, 16])
def test_prefix_hit_equals_cold(subject: Subject, block_size: int) -> None:
    """The same prompts again, and prompts that go on from a prefix or from an answer."""
    prompts = subject.prompts(12)
    core = subject.build(block_size=block_size)
    cold = subject.run(core, prompts)
    assert cold == subject.alone(prompts)
    again = subject.run(core, prompts)
    assert again == cold
    whole_blocks = [(len(prompt) - 1) // block_size * block_size for prompt in prompts]
    assert [result.cached[0] for result in again] == whole_blocks

    longer = [
        [*(prompt if i % 2 else prompt[: len(prompt) // 2]), *result.tokens[0], 3, 1, 4]
        for i, (prompt, result) in enumerate(zip(prompts, cold, strict=True))
    ]
    results = subject.run(core, longer)
    assert results == subject.alone(longer)
    assert sum(result.cached[0] for result in results) > 150


def test_preempted_equals_not(subject: Subject) -> None:
    """Short prompts with long answers outgrow the pool together, again and again."""
    prompts = [prompt[:23] for prompt in subject.prompts(10)]
    params = subject.params(10, max_tokens=20)
    core = subject.build(block_size=2, num_blocks=50)
    assert generate(core, prompts, params) == subject.alone(prompts, params)
    assert core.scheduler.stats().preemptions > (4 if subject.grows else 0)


def test_choices_equal_those_of_fewer(subject: Subject) -> None:
    """A choice does not depend on how many there are; the first is that of n = 1."""
    prompts = subject.prompts(7)
    five = subject.run(subject.build(), prompts, n=5)
    busy = subject.build(block_size=4, num_blocks=60, max_num_batched_tokens=40)
    for number, core in [(2, subject.build()), (5, busy)]:
        for fewer, all_five, alone in zip(
            subject.run(core, prompts, n=number), five, subject.alone(prompts), strict=True
        ):
            assert fewer.tokens == all_five.tokens[:number]
            assert fewer.logprobs == all_five.logprobs[:number]
            assert fewer.tokens[0] == alone.tokens[0]
            assert fewer.logprobs[0] == alone.logprobs[0]
    sampled = five[1].tokens
    assert len({tuple(tokens) for tokens in sampled}) > 1


@pytest.mark.parametrize("budget", [None, 9])
def test_resumed_equals_uninterrupted(subject: Subject, budget: int | None) -> None:
    """As after an engine's death: what was generated already is handed in."""
    prompts = subject.prompts(12)
    whole = subject.alone(prompts)
    cuts = [i % len(result.tokens[0]) for i, result in enumerate(whole)]
    begun = [[result.tokens[0][:cut]] for result, cut in zip(whole, cuts, strict=True)]
    core = subject.build(max_num_batched_tokens=budget)
    for result, wanted, cut in zip(
        subject.run(core, prompts, generated=begun), whole, cuts, strict=True
    ):
        assert result.tokens[0] == wanted.tokens[0][cut:]
        assert result.logprobs[0] == wanted.logprobs[0][cut:]
        assert result.finish == wanted.finish


def test_block_size_does_not_show(subject: Subject) -> None:
    prompts = subject.prompts(12)
    for block_size in (1, 64):
        core = subject.build(block_size=block_size)
        assert subject.run(core, prompts) == subject.alone(prompts)


def test_all_at_once(subject: Subject) -> None:
    """Chunks, hits, preemptions, choices and arrivals in one run, twice over."""
    prompts = subject.prompts(20)
    wanted = [(a.tokens[0], a.logprobs[0]) for a in subject.alone(prompts)]
    core = subject.build(block_size=4, num_blocks=48, max_num_batched_tokens=24, max_num_seqs=9)
    for turn in range(2):
        arrivals = [(11 * i + turn) % 31 for i in range(20)]
        numbers = [1 + (i + turn) % 3 for i in range(20)]
        results = subject.run(core, prompts, n=numbers, arrivals=arrivals)
        assert [(r.tokens[0], r.logprobs[0]) for r in results] == wanted
    assert core.scheduler.stats().preemptions > 0 or not subject.grows


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", ()),
        ("bfloat16", INT8_KV),
        pytest.param("bfloat16", (), marks=slow),
        pytest.param("float32", INT8_KV, marks=slow),
        pytest.param("bfloat16", REFERENCE, marks=slow),
        pytest.param("bfloat16", INT8_KV + REFERENCE, marks=slow),
    ],
    ids=lambda part: part if isinstance(part, str) else _name(options=part),
)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_at_once(
    kind: str, dtype: str, options: Options, tmp_path: Path
) -> None:
    """As above, briefly: all the tests here run over every architecture in the full run."""
    check_briefly(Subject(write_model(tmp_path, BASES[kind]), dtype, options))


def test_the_reference_at_once(tmp_path: Path) -> None:
    """Where no native kernels are: as above, and all the tests here in the full run."""
    folder = write_llama(tmp_path / "llama", std=0.2, **LLAMA_ODD)
    check_briefly(Subject(folder, "float32", REFERENCE))


def check_briefly(subject: Subject) -> None:
    prompts = subject.prompts(5)
    wanted = subject.alone(prompts)
    roomy = subject.build()
    assert subject.run(roomy, prompts) == wanted
    again = subject.run(roomy, prompts)
    assert again == wanted
    assert sum(result.cached[0] for result in again) > 100

    short = [prompt[:13] for prompt in prompts * 2]
    params = subject.params(5, max_tokens=10) * 2
    tight = subject.build(block_size=2, num_blocks=36, max_model_len=40, max_num_batched_tokens=16)
    assert generate(tight, short, params) == subject.alone(short, params)
    assert tight.scheduler.stats().preemptions > 0

    drafting = subject.build(speculate="ngram")
    predictions = [[*result.tokens[0][:3], 7, *result.tokens[0][4:]] for result in wanted]
    assert subject.run(drafting, prompts, predictions=predictions) == wanted
    assert drafting.scheduler.stats().accepted >= 10


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=slow)])
def test_with_any_number_of_threads(subject: Subject, threads: int) -> None:
    """Within itself: between numbers of threads, bits may differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        prompts = subject.prompts(12)
        bare = subject.build(prefix_cache=False)
        mixes = zip(prompts, subject.params(12), strict=True)
        alone = [generate(bare, [prompt], params)[0] for prompt, params in mixes]
        core = subject.build(max_num_batched_tokens=64)
        assert subject.run(core, prompts) == alone
    finally:
        torch.set_num_threads(before)
