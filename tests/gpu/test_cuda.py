"""On a card: the same answers as the CPU within rounding, and the promises in bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rosellm.roseinfer.request import SamplingParams
from tests.models.architectures import BASES, write_model
from tests.models.encoders import BERT, embed, texts, write_bert
from tests.models.test_moe import MIXTRAL, write_moe
from tests.tiny_models import (
    Generated,
    build,
    generate,
    greedy,
    random_prompts,
    write_gpt2,
    write_llama,
)

pytestmark = pytest.mark.gpu

DTYPES = ["float32", "bfloat16", "float16"]
ARCHITECTURES = ["mistral", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "gpt_neox", "olmo2"]
LENGTHS = [1, 5, 16, 17, 40, 63, 64, 65, 100, 130, 7, 3]
VOCABULARY = 1003


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> None:
    """fp32 products in fp32: TF32 would be another type."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module", params=["llama", "llama-odd", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / request.param
    if request.param == "gpt2":
        return write_gpt2(path, vocab_size=VOCABULARY, n_embd=256, n_head=4, n_layer=3, std=0.08)
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 688, "std": 0.08}
    if request.param == "llama-odd":
        sizes = {"hidden_size": 60, "intermediate_size": 172, "num_attention_heads": 5,
                 "num_key_value_heads": 5, "head_dim": 12}  # fmt: skip
    else:
        sizes |= {"num_attention_heads": 8}
    return write_llama(path, vocab_size=VOCABULARY, num_hidden_layers=3, **sizes)


def test_fp32_equals_the_cpu(folder: Path) -> None:
    prompts = random_prompts(LENGTHS, VOCABULARY)
    card = generate(build(folder, device="cuda"), prompts, greedy(24))
    host = generate(build(folder, device="cpu"), prompts, greedy(24))
    for ours, theirs in zip(card, host, strict=True):
        assert ours.tokens == theirs.tokens
        for a, b in zip(ours.logprobs[0], theirs.logprobs[0], strict=True):
            assert a.chosen == pytest.approx(b.chosen, abs=2e-4)


def test_bf16_is_near_fp32(folder: Path) -> None:
    prompts = random_prompts(LENGTHS, VOCABULARY)
    exact = generate(build(folder, device="cpu"), prompts, greedy(1))
    rounded = generate(build(folder, device="cuda", dtype="bfloat16"), prompts, greedy(1))
    errors = [
        abs(
            dict(zip(a.logprobs[0][0].top_ids, a.logprobs[0][0].top, strict=True)).get(token, v) - v
        )
        for a, b in zip(rounded, exact, strict=True)
        for token, v in zip(b.logprobs[0][0].top_ids, b.logprobs[0][0].top, strict=True)
    ]
    assert sum(errors) / len(errors) < 0.1


def _params() -> list[SamplingParams]:
    """Greedy and sampled in turn."""
    sampled = {"temperature": 0.9, "top_p": 0.95, "top_k": 200, "logprobs": 5, "max_tokens": 20}
    return [
        greedy(20) if i % 2 else SamplingParams(seed=i, repetition_penalty=1.1, **sampled)  # type: ignore[arg-type]
        for i in range(len(LENGTHS))
    ]


def _alone(folder: Path, dtype: str) -> list[Generated]:
    core = build(folder, device="cuda", dtype=dtype, prefix_cache=False)
    prompts = random_prompts(LENGTHS, VOCABULARY)
    return [generate(core, [p], q)[0] for p, q in zip(prompts, _params(), strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_promises_in_bits(folder: Path, dtype: str) -> None:
    prompts, params = random_prompts(LENGTHS, VOCABULARY), _params()
    alone = _alone(folder, dtype)
    core = build(folder, device="cuda", dtype=dtype)
    assert core.facts.invariant
    assert generate(core, prompts, params) == alone, "batched = single"
    again = generate(core, prompts, params)
    assert sum(g.cached[0] for g in again) > 0
    assert again == alone, "prefix hit = cold"
    for budget in (7, 33):
        chunked = build(folder, device="cuda", dtype=dtype, max_num_batched_tokens=budget)
        assert generate(chunked, prompts, params) == alone, "chunked = whole"
    small = build(
        folder, device="cuda", dtype=dtype, num_blocks=42, block_size=4, max_model_len=160
    )
    assert generate(small, prompts, params) == alone, "preempted = not"
    assert small.scheduler.stats().preemptions > 0


# -- every architecture, tiny ---------------------------------------------------------


@pytest.fixture(scope="module", params=[*ARCHITECTURES, "mixtral"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("gpu") / request.param
    if request.param == "mixtral":
        return write_moe(path, {**MIXTRAL, "max_position_embeddings": 256})
    return write_model(path, BASES[request.param])


def test_architectures_equal_the_cpu(tiny: Path) -> None:
    prompts = random_prompts(LENGTHS, 97)
    card = generate(build(tiny, device="cuda"), prompts, greedy(1))
    host = generate(build(tiny, device="cpu"), prompts, greedy(1))
    for ours, theirs in zip(card, host, strict=True):
        assert ours.logprobs[0][0].chosen == pytest.approx(theirs.logprobs[0][0].chosen, abs=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_architectures_keep_their_bits(tiny: Path, dtype: str) -> None:
    prompts, params = random_prompts(LENGTHS, 97), _params()
    core = build(tiny, device="cuda", dtype=dtype)
    alone = [generate(core, [p], q)[0] for p, q in zip(prompts, params, strict=True)]
    assert generate(core, prompts, params) == alone, "batched = single, prefix hit = cold"
    chunked = build(tiny, device="cuda", dtype=dtype, max_num_batched_tokens=13)
    assert generate(chunked, prompts, params) == alone, "chunked = whole"


def test_an_encoders_vectors(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert", BERT)
    prompts = texts([1, 160, 7, 16, 90, 3, 33])
    card, host = build(folder, device="cuda"), build(folder, device="cpu")
    together = torch.stack(embed(card, prompts))
    assert torch.equal(together, torch.stack([embed(card, [prompt])[0] for prompt in prompts]))
    torch.testing.assert_close(together, torch.stack(embed(host, prompts)), atol=2e-5, rtol=0)
