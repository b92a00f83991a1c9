"""Attention by FlashInfer, with a stand-in for it; and what is said where it cannot run."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

from rosellm.roseinfer.attention import flashinfer
from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.attention.flashinfer import FlashInferAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVTensor
from rosellm.roseinfer.errors import ConfigError
from tests.kernels import fake_flashinfer
from tests.kernels.paged import Sequences
from tests.models.architectures import BASES, write_model
from tests.tiny_models import build, generate, greedy, random_prompts, write_llama

CPU, CARD = torch.device("cpu"), torch.device("cuda")
LENGTHS = [1, 5, 15, 16, 17, 40, 127, 33]
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer.module())


def by_flashinfer(block_size: int) -> AttentionBackend:
    return FlashInferAttention(block_size, CPU)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 16, 30])
@pytest.mark.parametrize(("heads", "block_size"), [((6, 2, 10), 16), ((4, 1, 16), 3)])
def test_equals_the_reference(
    heads: tuple[int, int, int], block_size: int, window: int | None, softcap: float | None
) -> None:
    dtype = torch.float32
    ours = Sequences(heads, block_size, dtype, window, LENGTHS, by_flashinfer, softcap=softcap)
    theirs = Sequences(heads, block_size, dtype, window, LENGTHS, softcap=softcap)
    for sequences in (ours, theirs):  # what is masked is multiplied by zero, which NaN outlives
        for cache in sequences.storage.layer(0):
            cache.data.nan_to_num_(7.0)
    rng = random.Random(0)
    steps = [ours.whole(), ours.decode(), *(ours.random_parts(rng) for _ in range(6))]
    for parts in steps:
        for found, wanted in zip(ours.attend(parts), theirs.attend(parts), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_step_is_planned_once_for_all_layers_of_a_group() -> None:
    made = Sequences((4, 2, 8), 16, torch.float32, None, LENGTHS, by_flashinfer)
    q, cache = torch.cat(made.q), made.storage.layer(0)
    before = fake_flashinfer.Wrapper.plans
    for _ in range(2):
        full = made.prepare(made.whole())
        made.window = 8
        near = made.prepare(made.whole())
        made.window = None
        for _ in range(3):
            for meta in (full, near):
                made.backend.run(q, *cache, made.scale, meta)
    assert fake_flashinfer.Wrapper.plans - before == 4
    made.backend.run(q, *cache, made.scale / 2, full)
    assert fake_flashinfer.Wrapper.plans - before == 5


def test_keys_and_values_are_not_copied() -> None:
    made = FlashInferAttention(4, CPU)
    data = torch.zeros(8, 2, 16)
    assert made._paged(KVTensor(data)).data_ptr() == data.data_ptr()
    with pytest.raises(RuntimeError):
        made._paged(KVTensor(torch.zeros(16, 2, 8)[::2].transpose(0, 1)))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_whole_model(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and single tokens in one step; Gemma 2 has windows and a soft cap."""
    path = tmp_path / architecture
    folder = (
        write_llama(path) if architecture == "llama" else write_model(path, BASES[architecture])
    )
    settings = {"kernels": "reference", "max_num_batched_tokens": 24, "max_num_seqs": 4}
    prompts = random_prompts([3, 40, 17, 33, 1], 60)
    meant = generate(build(folder, **settings), prompts, greedy(8))
    monkeypatch.setattr(flashinfer, "why_not", lambda *_: None)
    core = build(folder, attention="flashinfer", **settings)
    found = generate(core, prompts, greedy(8))
    assert [each.tokens for each in found] == [each.tokens for each in meant]
    said = {decision.name: decision for decision in core.facts.decisions}
    assert said["attention"].value == "flashinfer 0.6.0"
    assert "a row's bits may depend on its batch" in said["attention"].reason
    assert not core.facts.invariant
    assert core.facts.fingerprint.endswith("_batch-dependent")


def test_auto_says_that_it_is_not_taken(tmp_path: Path) -> None:
    core = build(write_llama(tmp_path / "llama"), kernels="reference")
    said = {decision.name: decision for decision in core.facts.decisions}
    assert said["attention"].value == "reference"
    assert core.facts.invariant


def test_it_is_refused_on_a_cpu(tmp_path: Path) -> None:
    line = "--attention flashinfer: FlashInfer runs on CUDA, not on cpu; use --attention auto"
    with pytest.raises(ConfigError, match=line):
        build(write_llama(tmp_path / "llama"), attention="flashinfer")


def group(dim: int = 64, causal: bool = True) -> KVGroup:
    return KVGroup((0,), 2, dim, None, causal)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "made", "reason"),
    [
        (torch.float32, torch.float32, group(), "bfloat16 and float16, not in float32"),
        (BF16, torch.int8, group(), "scales of a KV cache in int8"),
        (BF16, torch.float8_e4m3fn, group(), "scales of a KV cache in float8_e4m3fn"),
        (BF16, BF16, group(96), "heads of 64, 128, 256 numbers, and the model's have 96"),
        (BF16, BF16, group(causal=False), "the model is an encoder"),
    ],
)
def test_reasons_in_the_model(
    dtype: torch.dtype, kv_dtype: torch.dtype, made: KVGroup, reason: str
) -> None:
    assert reason in str(flashinfer.why_not(CARD, dtype, kv_dtype, 4, [made]))


def test_reasons_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer.module("0.1.6"))
    assert (
        flashinfer.why_not(CARD, BF16, BF16, 4, [group()]) == "flashinfer 0.1.6 is older than 0.2"
    )
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    said = flashinfer.why_not(CARD, BF16, BF16, 4, [group()])
    assert said == "flashinfer is not installed (pip install flashinfer-python)"


def test_a_trial_has_the_models_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    caps = []
    plan = fake_flashinfer.Wrapper.plan

    def noted(self: fake_flashinfer.Wrapper, *args: object, **options: object) -> None:
        caps.append(options["logits_soft_cap"])
        plan(self, *args, **options)

    monkeypatch.setattr(fake_flashinfer.Wrapper, "plan", noted)
    assert flashinfer._of_trial(CPU, BF16, 4, [group()], 50.0) is None
    assert caps == [50.0]


def test_a_trial_comes_before_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flashinfer._of_trial(CPU, BF16, 4, [group()], None) is None

    def fails(*_: object) -> None:
        raise RuntimeError("no nvcc\nand more")

    monkeypatch.setattr(fake_flashinfer.Wrapper, "run", fails)
    said = flashinfer._of_trial(CPU, BF16, 4, [group()], None)
    assert said == "FlashInfer cannot run here (RuntimeError: no nvcc)"
    monkeypatch.setattr(fake_flashinfer.Wrapper, "run", lambda self, q, cache: q * 2)
    assert "something wrong" in str(flashinfer._of_trial(CPU, BF16, 4, [group()], None))
