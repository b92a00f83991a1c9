"""On a card: every Triton kernel against its reference, in all types, and each row's bits its own.

Whole models on these kernels, and the promises, are in ``test_cuda.py``: on a card they are what
``--kernels auto`` takes.
"""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.attention.step import HeadNorms, Heads
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage, KVTensor
from rosellm.roseinfer.kernels import logprobs as reference_logprobs
from rosellm.roseinfer.kernels import noise, reference
from rosellm.roseinfer.kernels import sampling as reference_sampling
from rosellm.roseinfer.kernels.reference import Activation
from rosellm.roseinfer.kernels.table import choose_ops
from rosellm.roseinfer.layers.rope import RopeSpec
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.step import LogitRow

pytestmark = pytest.mark.gpu

CARD, CPU = torch.device("cuda"), torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
LENGTHS = [1, 17, 64, 130, 700, 1500]
# heads, KV heads, head dim
HEADS = [(32, 8, 128), (16, 8, 128), (12, 12, 64), (8, 4, 256), (6, 2, 10), (71, 1, 64), (9, 3, 80)]
VOCABULARY = 50257


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """These kernels, on this card, and not interpreted."""
    from rosellm.roseinfer.kernels.triton import support

    assert not support.interpreted()
    assert support.why_not(CARD) is None


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(CARD)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    tolerance = TOLERANCE[wanted.dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# -- attention ------------------------------------------------------------------------------------


class Sequences:
    """Queries of some sequences, whose keys and values are in a shuffled paged cache."""

    def __init__(
        self, heads: tuple[int, int, int], dtype: torch.dtype, kv_dtype: torch.dtype, **more: Any
    ) -> None:
        from rosellm.roseinfer.attention.triton import TritonAttention

        count, kv_heads, dim = heads
        self.window, self.softcap = more.get("window"), more.get("softcap")
        self.causal = more.get("causal", True)
        blocks = [-(-length // 16) for length in LENGTHS]
        self.storage = KVStorage([KVGroup((0,), kv_heads, dim)], [sum(blocks)], 16, kv_dtype, CARD)
        free = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(1)).tolist()
        self.tables = [[free.pop() for _ in range(n)] for n in blocks]
        self.q = [values(n, count, dim, seed=i, dtype=dtype) for i, n in enumerate(LENGTHS)]
        self.ours = TritonAttention(16, CARD, count // kv_heads)
        self.theirs = ReferenceAttention(16, CARD)
        self.scale = dim**-0.5
        whole = [(i, 0, n) for i, n in enumerate(LENGTHS)]
        slots = self.ours.slots(self.prepare(self.ours, whole))
        for cache, seed in zip(self.storage.layer(0), (98, 99), strict=True):
            reference.write_kv(cache, slots, values(sum(LENGTHS), kv_heads, dim, seed=seed))

    def prepare(self, backend: Any, parts: list[tuple[int, int, int]]) -> Any:
        return backend.prepare(
            [start for _, start, _ in parts],
            [count for *_, count in parts],
            [self.tables[s] for s, *_ in parts],
            self.storage.null_blocks[0],
            self.window,
            self.causal,
        )

    def attend(self, parts: list[tuple[int, int, int]], backend: Any = None) -> list[Tensor]:
        backend = backend or self.ours
        q = torch.cat([self.q[s][a : a + n] for s, a, n in parts])
        meta = self.prepare(backend, parts)
        out = backend.run(q, *self.storage.layer(0), self.scale, meta, self.softcap)
        return list(out.split([n for *_, n in parts]))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 100},
    "softcap": {"softcap": 20.0},
    "both": {"window": 600, "softcap": 50.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention(
    heads: tuple[int, int, int], dtype: torch.dtype, int8: bool, variant: str
) -> None:
    made = Sequences(heads, dtype, torch.int8 if int8 else dtype, **VARIANTS[variant])
    whole = [(i, 0, n) for i, n in enumerate(LENGTHS)]
    alone = [made.attend([part])[0] for part in whole]
    for found, wanted in zip(alone, made.attend(whole, made.theirs), strict=True):
        close(found, wanted)
    rng = random.Random(0)
    decode = [(i, n - 1, 1) for i, n in enumerate(LENGTHS)]
    batches = [whole, whole[::-1], decode, decode[::-1], *([part] for part in decode)]
    for _ in range(8):
        batch = []
        for i in rng.sample(range(len(LENGTHS)), rng.randint(1, len(LENGTHS))):
            start = LENGTHS[i] - 1 if rng.random() < 0.5 else rng.randrange(LENGTHS[i])
            batch.append((i, start, rng.randint(1, LENGTHS[i] - start)))
        batches.append(batch)
    for batch in batches:
        for (i, start, count), found in zip(batch, made.attend(batch), strict=True):
            assert torch.equal(found, alone[i][start : start + count]), (i, start, count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_encoders_attention(dtype: torch.dtype) -> None:
    made = Sequences((12, 12, 32), dtype, dtype, causal=False)
    whole = [(i, 0, n) for i, n in enumerate(LENGTHS)]
    for found, wanted in zip(made.attend(whole), made.attend(whole, made.theirs), strict=True):
        close(found, wanted)


def test_attention_in_a_graph() -> None:
    """Captured once, with room for more blocks, and replayed on another step's arrays."""
    made = Sequences((8, 2, 64), torch.bfloat16, torch.bfloat16)
    q = made.q[-1][1399:1400].clone()

    def prepared(position: int) -> Any:
        return made.ours.prepare([position], [1], [made.tables[-1]], 0, blocks=96)

    def run(meta: Any) -> Tensor:
        return made.ours.run(q, *made.storage.layer(0), made.scale, meta)

    eager = {position: run(prepared(position)) for position in (1399, 40, 700)}
    static = prepared(1399)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = run(static)
    for position, wanted in eager.items():
        for name in ("items", "merges", "tables", "slots"):
            getattr(static, name).copy_(getattr(prepared(position), name))
        graph.replay()
        assert torch.equal(out, wanted), position


# -- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 33, 768, 1024, 4096, 5120])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms(dtype: torch.dtype, width: int) -> None:
    from rosellm.roseinfer.kernels.triton import rows

    x, y = (values(70, width, seed=seed, dtype=dtype) for seed in (0, 1))
    weight, bias = values(width, seed=2, dtype=dtype), values(width, seed=3, dtype=dtype)
    normed = rows.rms_norm(x, weight, 1e-5)
    close(normed, reference.rms_norm(x, weight, 1e-5))
    assert torch.equal(rows.rms_norm(x[7:8], weight, 1e-5), normed[7:8])
    if width > 1:
        close(rows.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x, weight, bias, 1e-5))
    total, both = rows.sum_norm(x, y, weight, None, 1e-5)
    assert torch.equal(total, x + y)
    assert torch.equal(both, rows.rms_norm(x + y, weight, 1e-5))


@pytest.mark.parametrize("kind", get_args(Activation))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(dtype: torch.dtype, kind: Activation) -> None:
    from rosellm.roseinfer.kernels.triton import rows

    x = values(40, 2 * 3001, dtype=dtype) * 4
    found = rows.activate(x, kind)
    close(found, reference.ACTIVATIONS[kind](x))
    assert torch.equal(rows.activate(x[9:10], kind), found[9:10])


def test_a_lookup() -> None:
    from rosellm.roseinfer.kernels.triton import rows

    table = values(97, 1030, dtype=torch.bfloat16)
    ids = torch.tensor([6, 0, 96, 6], device=CARD)
    assert torch.equal(rows.lookup(ids, table[:, :1025]), table[ids, :1025])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(32, 8, 128), (12, 12, 64), (5, 1, 10)], ids=str)
def test_heads_to_the_cache(shape: tuple[int, int, int], dtype: torch.dtype, int8: bool) -> None:
    from rosellm.roseinfer.kernels.triton.heads import to_cache

    count, kv_heads, dim = shape
    rotary = dim // 2 * 2
    qkv = values(9, (count + 2 * kv_heads) * dim, dtype=dtype)
    heads = Heads(count, kv_heads, dim, 0, 0, RopeSpec(10000.0, rotary), 1.0, None)
    norms = HeadNorms(values(dim, seed=1), values(dim, seed=2), 1e-6)
    angle = values(9, rotary // 2, seed=3)
    angles = angle.cos(), angle.sin()
    slots = torch.tensor([30, 1, 2, 3, 17, 5, 6, 9, 8], device=CARD)
    kv = torch.int8 if int8 else dtype
    found, wanted = (
        KVStorage([KVGroup((0,), kv_heads, dim)], [2], 16, kv, CARD).layer(0) for _ in range(2)
    )
    q = to_cache(qkv, heads, norms, angles, found, slots)
    parts = list(qkv.unflatten(1, (-1, dim)).split([count, kv_heads, kv_heads], dim=1))
    for index, weight in enumerate((norms.q, norms.k)):
        normed = reference.rms_norm(parts[index].contiguous(), weight, 1e-6)
        parts[index] = reference.rope(normed, *angles)
    close(q, parts[0])
    for ours, theirs, part in zip(found, wanted, parts[1:], strict=True):
        reference.write_kv(theirs, slots, part)
        if int8:  # a code may be the next one
            torch.testing.assert_close(_numbers(ours), _numbers(theirs), rtol=2e-2, atol=5e-2)
        else:
            close(ours.data, theirs.data)


def _numbers(cache: KVTensor) -> Tensor:
    return cache.data if cache.scales is None else cache.data * cache.scales[..., None]


# -- tokens ---------------------------------------------------------------------------------------

WANTED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.6},
    {"temperature": 2.0, "top_k": 7, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1e-30, "top_p": 0.5},
    {"temperature": 1.0, "top_p": 0.0},
]


def test_tokens() -> None:
    """Those of the CPU, but for what stands on a threshold or draws a tie to the last bits."""
    ops = choose_ops(CARD, "triton")
    scores = values(len(WANTED), VOCABULARY) * 3
    same = total = 0
    for position in range(40):
        wanted = [
            LogitRow(0, SamplingParams(seed=i, max_tokens=9, **each), i % 3, position)
            for i, each in enumerate(WANTED)
        ]
        found = ops.draw(scores, wanted, None, None)
        for i in (0, 3, 6):
            assert ops.draw(scores[i : i + 1], wanted[i : i + 1], None, None) == found[i]
        theirs = reference_sampling.draw(scores.cpu(), wanted, None)
        same += int((found.cpu() == theirs).sum())
        total += len(WANTED)
        assert found[0] == theirs[0]
    assert same >= total - 3


def test_many_equal_logits() -> None:
    ops = choose_ops(CARD, "triton")
    scores = (values(len(WANTED), VOCABULARY) * 1.5).round()
    wanted = [
        LogitRow(0, SamplingParams(seed=i, max_tokens=9, **each), 0, 5)
        for i, each in enumerate(WANTED)
    ]
    found = ops.draw(scores, wanted, None, None).cpu()
    theirs = reference_sampling.draw(scores.cpu(), wanted, None)
    assert found[0] == theirs[0], "the lowest of equals"
    assert int((found != theirs).sum()) <= 1


def test_noise() -> None:
    """Gumbel noise of the CPU's uniform numbers: the logarithms differ in the last bits only."""
    ops = choose_ops(CARD, "triton")
    flat = torch.zeros(4, VOCABULARY, device=CARD)
    wanted = [LogitRow(0, SamplingParams(seed=i << 33, max_tokens=9), i, i) for i in range(4)]
    parts = [torch.tensor([i << s for i in range(4)]) for s in (33, 0, 0)]
    assert torch.equal(
        ops.draw(flat, wanted, None, None).cpu(), noise.gumbel(*parts, VOCABULARY).argmax(-1)
    )


@pytest.mark.parametrize("width", [0, 1, 20])
def test_logprobs(width: int) -> None:
    ops = choose_ops(CARD, "triton")
    raw = values(5, VOCABULARY) * 3
    raw[1] = (raw[1] / 2).round()
    tokens = torch.tensor([50256, 0, 17, 4, 9999], device=CARD)
    found = ops.logprobs_of(raw, tokens, width)
    wanted = reference_logprobs.logprobs_of(raw.cpu(), tokens.cpu(), width)
    assert torch.equal(found[1].cpu(), wanted[1])
    for ours, theirs in zip(found[::2], wanted[::2], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)
    alone = ops.logprobs_of(raw[1:2], tokens[1:2], width)
    assert all(torch.equal(a[0], b[1]) for a, b in zip(alone, found, strict=True))
