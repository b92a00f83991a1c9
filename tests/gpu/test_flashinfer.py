"""On a card with FlashInfer: its attention is near the reference's, and a model answers with it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.attention.flashinfer import DTYPES, HEAD_DIMS, FlashInferAttention
from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels import reference
from tests.tiny_models import build, generate, greedy, random_prompts, write_llama

pytestmark = pytest.mark.gpu
pytest.importorskip("flashinfer")

CARD = torch.device("cuda")
LENGTHS = [1, 15, 16, 17, 130, 513, 1400]
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


def normal(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(CARD, dtype)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)], ids=str)
def test_equals_the_reference(
    heads: tuple[int, int], dim: int, dtype: torch.dtype, window: int | None, softcap: float | None
) -> None:
    count, kv_heads = heads
    blocks = [-(-length // 16) for length in LENGTHS]
    storage = KVStorage([KVGroup((0,), kv_heads, dim)], [sum(blocks)], 16, dtype, CARD)
    free = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(1)).tolist()
    tables = [[free.pop() for _ in range(n)] for n in blocks]
    backends: list[Any] = [FlashInferAttention(16, CARD), ReferenceAttention(16, CARD)]

    def prepare(backend: Any, parts: list[tuple[int, int, int]]) -> Any:
        starts, lengths = [start for _, start, _ in parts], [n for *_, n in parts]
        own = [tables[s] for s, *_ in parts]
        return backend.prepare(starts, lengths, own, storage.null_blocks[0], window)

    whole = [(s, 0, n) for s, n in enumerate(LENGTHS)]
    slots = [backend.slots(prepare(backend, whole)) for backend in backends]
    assert torch.equal(*slots)
    for seed, cache in enumerate(storage.layer(0)):
        written = normal(sum(LENGTHS), kv_heads, dim, dtype=dtype, seed=seed)
        reference.write_kv(cache, slots[0], written)
    rng = random.Random(0)
    mixed = [(s, n // 2, rng.randint(1, n - n // 2)) for s, n in enumerate(LENGTHS)]
    for parts in (whole, [(s, n - 1, 1) for s, n in enumerate(LENGTHS)], mixed):
        q = normal(sum(n for *_, n in parts), count, dim, dtype=dtype, seed=9)
        found, wanted = (
            backend.run(q, *storage.layer(0), dim**-0.5, prepare(backend, parts), softcap)
            for backend in backends
        )
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_a_model_answers(tmp_path: Path) -> None:
    """First tokens as ours gives them, but for near ties; and whole answers come."""
    sizes: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "std": 0.08}
    folder = write_llama(tmp_path / "llama", vocab_size=1003, **sizes)
    prompts = random_prompts([1, 5, 16, 17, 40, 63, 100, 130], 1003)
    settings: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "max_num_batched_tokens": 64}
    ours = generate(build(folder, **settings), prompts, greedy(24))
    core = build(folder, attention="flashinfer", **settings)
    found = generate(core, prompts, greedy(24))
    assert not core.facts.invariant
    said = {decision.name: decision for decision in core.facts.decisions}
    assert said["attention"].value.startswith("flashinfer ")
    assert said["CUDA graphs"].value == "off"
    same = sum(a.tokens[0][0] == b.tokens[0][0] for a, b in zip(found, ours, strict=True))
    assert same >= len(prompts) - 1
    assert all(len(each.tokens[0]) == 24 for each in found)
