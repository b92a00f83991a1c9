"""Paged attention: right (against torch's own, dense), and the same in any batch or chunk."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage
from rosellm.roseinfer.kernels import reference

CPU = torch.device("cpu")
LENGTHS = [1, 5, 15, 16, 17, 40, 127, 128, 129, 200, 257, 33]
# heads, KV heads, head dim
HEADS = [
    (1, 1, 8),
    (4, 1, 16),
    (4, 4, 8),
    (6, 2, 10),
    (8, 4, 8),
    (5, 5, 20),
    (7, 1, 3),
    (3, 3, 1),
    (9, 3, 80),
]
Part = tuple[int, int, int]  # sequence, start, length


class Sequences:
    """Queries, keys and values of some sequences, keys and values in a shuffled paged cache.

    Every slot that no sequence owns holds NaN, so that reading one shows.
    """

    def __init__(
        self,
        heads: tuple[int, int, int],
        block_size: int,
        dtype: torch.dtype,
        window: int | None,
        lengths: Sequence[int] = LENGTHS,
    ) -> None:
        num_heads, kv_heads, dim = heads
        generator = torch.Generator().manual_seed(sum(heads) + block_size)
        blocks = [-(-length // block_size) for length in lengths]
        num_blocks = sum(blocks) + 3
        self.window = window
        self.block_size = block_size
        self.scale = dim**-0.5
        self.lengths = lengths
        group = KVGroup((0,), kv_heads, dim, window)
        self.storage = KVStorage([group], [num_blocks], block_size, dtype, CPU)
        self.backend = ReferenceAttention(block_size, CPU)
        free = torch.randperm(num_blocks, generator=generator).tolist()
        self.tables = [[free.pop() for _ in range(count)] for count in blocks]

        def normal(length: int, many: int) -> Tensor:
            return torch.randn(length, many, dim, generator=generator).to(dtype)

        self.q = [normal(length, num_heads) for length in lengths]
        self.k = [normal(length, kv_heads) for length in lengths]
        self.v = [normal(length, kv_heads) for length in lengths]
        self.fill_cache()

    def fill_cache(self) -> None:
        keys, values = self.storage.layer(0)
        real_slots = self.storage.null_blocks[0] * self.block_size
        for cache in (keys, values):
            everything = torch.arange(real_slots)
            shape = (real_slots, self.k[0].shape[1], self.k[0].shape[2])
            reference.write_kv(cache, everything, torch.full(shape, torch.nan))
        meta = self._prepare([(s, 0, length) for s, length in enumerate(self.lengths)])
        slots = self.backend.slots(meta)
        reference.write_kv(keys, slots, torch.cat(self.k))
        reference.write_kv(values, slots, torch.cat(self.v))

    def _prepare(self, parts: Sequence[Part]) -> object:
        sequences, starts, lengths = zip(*parts, strict=True)
        tables = [self.tables[s] for s in sequences]
        null = self.storage.null_blocks[0]
        return self.backend.prepare(starts, lengths, tables, null, self.window)

    def attend(self, parts: Sequence[Part]) -> list[Tensor]:
        """Attention of those parts of sequences in one call."""
        q = torch.cat([self.q[s][start : start + count] for s, start, count in parts])
        out = self.backend.run(q, *self.storage.layer(0), self.scale, self._prepare(parts))
        return list(out.split([count for _, _, count in parts]))

    def dense(self, sequence: int) -> Tensor:
        """The whole sequence by torch's own attention, in fp64."""
        q, k, v = (part[sequence].double().transpose(0, 1) for part in (self.q, self.k, self.v))
        own = torch.arange(self.lengths[sequence])
        seen = own[None, :] <= own[:, None]
        if self.window is not None:
            seen &= own[None, :] > own[:, None] - self.window
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=seen, scale=self.scale, enable_gqa=True
        )
        return out[0].transpose(0, 1)

    def random_parts(self, rng: random.Random) -> list[Part]:
        """A step as a scheduler could make it: decodes and chunks of some sequences."""
        parts = []
        for sequence in rng.sample(range(len(self.lengths)), rng.randint(1, len(self.lengths))):
            length = self.lengths[sequence]
            start = length - 1 if rng.random() < 0.5 else rng.randrange(length)
            parts.append((sequence, start, rng.randint(1, length - start)))
        return parts


@pytest.mark.parametrize("window", [None, 1, 40, 128])
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_equals_dense_attention(
    heads: tuple[int, int, int], block_size: int, window: int | None
) -> None:
    sequences = Sequences(heads, block_size, torch.float32, window)
    rng = random.Random(block_size)
    whole = [(s, 0, length) for s, length in enumerate(LENGTHS)]
    for parts in (whole, sequences.random_parts(rng)):
        for (sequence, start, count), found in zip(parts, sequences.attend(parts), strict=True):
            wanted = sequences.dense(sequence)[start : start + count]
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", HEADS[3:6], ids=str)
def test_half_precision_rounds_only_its_result(
    heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    sequences = Sequences(heads, 16, dtype, None)
    whole = [(s, 0, length) for s, length in enumerate(LENGTHS)]
    for sequence, found in enumerate(sequences.attend(whole)):
        assert found.dtype == dtype
        wanted = sequences.dense(sequence)
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), wanted, rtol=step, atol=1e-5)


def assert_same_however_it_is_split(sequences: Sequences, rounds: int) -> None:
    alone = [sequences.attend([(s, 0, n)])[0] for s, n in enumerate(sequences.lengths)]
    whole = [(s, 0, length) for s, length in enumerate(sequences.lengths)]
    decode = [(s, length - 1, 1) for s, length in enumerate(sequences.lengths)]
    rng = random.Random(0)
    for parts in [
        whole,
        whole[::-1],
        decode,
        *(sequences.random_parts(rng) for _ in range(rounds)),
    ]:
        for (sequence, start, count), found in zip(parts, sequences.attend(parts), strict=True):
            assert torch.equal(found, alone[sequence][start : start + count]), parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_bits_do_not_depend_on_the_batch(
    heads: tuple[int, int, int], window: int | None, dtype: torch.dtype
) -> None:
    assert_same_however_it_is_split(Sequences(heads, 4, dtype, window), rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [*HEADS, (12, 12, 64), (32, 8, 128), (71, 1, 64)], ids=str)
def test_bits_do_not_depend_on_the_batch_wide(
    heads: tuple[int, int, int], dtype: torch.dtype, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same_however_it_is_split(Sequences(heads, 16, dtype, None), rounds=40)
    finally:
        torch.set_num_threads(before)


def test_block_tables_do_not_show() -> None:
    """The same sequence in other blocks, of another size, has the same bits."""
    outputs = []
    for block_size in (1, 4, 16, 64):
        sequences = Sequences((6, 2, 10), 16, torch.float32, None)
        moved = Sequences((6, 2, 10), block_size, torch.float32, None)
        moved.q, moved.k, moved.v = sequences.q, sequences.k, sequences.v
        moved.fill_cache()
        outputs.append(torch.cat(moved.attend([(s, 0, n) for s, n in enumerate(LENGTHS)])))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
