"""Sequences in a paged cache, and their attention by a backend, or dense in fp64."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.attention.reference import ReferenceAttention
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage, KVTensor
from rosellm.roseinfer.kernels import reference

CPU = torch.device("cpu")
Heads = tuple[int, int, int]  # heads, KV heads, head dim
Part = tuple[int, int, int]  # sequence, start, length


def by_reference(block_size: int) -> AttentionBackend:
    return ReferenceAttention(block_size, CPU)


class Sequences:
    """Queries, keys and values of some sequences, keys and values in a shuffled paged cache.

    Every slot that no sequence owns holds NaN, so that reading one shows. Entries of block tables
    that no token in the window sees are the null block.

    Args:
        dtype: of everything.
        kv_dtype: of the cache, if another.
        backend: makes what attends, for a block size.
        softcap, causal: see ``AttentionBackend``.
    """

    def __init__(
        self,
        heads: Heads,
        block_size: int,
        dtype: torch.dtype,
        window: int | None,
        lengths: Sequence[int],
        backend: Callable[[int], AttentionBackend] = by_reference,
        *,
        softcap: float | None = None,
        causal: bool = True,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        num_heads, kv_heads, dim = heads
        generator = torch.Generator().manual_seed(sum(heads) + block_size)
        blocks = [-(-length // block_size) for length in lengths]
        num_blocks = sum(blocks) + 3
        self.window, self.softcap, self.causal = window, softcap, causal
        self.block_size = block_size
        self.scale = dim**-0.5
        self.lengths = lengths
        group = KVGroup((0,), kv_heads, dim, window)
        self.storage = KVStorage([group], [num_blocks], block_size, kv_dtype or dtype, CPU)
        self.backend = backend(block_size)
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
        meta = self.prepare(self.whole())
        slots = self.backend.slots(meta)
        reference.write_kv(keys, slots, torch.cat(self.k))
        reference.write_kv(values, slots, torch.cat(self.v))

    def whole(self) -> list[Part]:
        return [(s, 0, length) for s, length in enumerate(self.lengths)]

    def decode(self) -> list[Part]:
        """The last token of each."""
        return [(s, length - 1, 1) for s, length in enumerate(self.lengths)]

    def random_parts(self, rng: random.Random) -> list[Part]:
        """A step as a scheduler could make it: decodes and chunks of some sequences."""
        parts = []
        for sequence in rng.sample(range(len(self.lengths)), rng.randint(1, len(self.lengths))):
            length = self.lengths[sequence]
            start = length - 1 if rng.random() < 0.5 else rng.randrange(length)
            parts.append((sequence, start, rng.randint(1, length - start)))
        return parts

    def prepare(self, parts: Sequence[Part]) -> object:
        starts, lengths = [start for _, start, _ in parts], [length for *_, length in parts]
        tables = [self._table(sequence, start) for sequence, start, _ in parts]
        null = self.storage.null_blocks[0]
        return self.backend.prepare(starts, lengths, tables, null, self.window, self.causal)

    def attend(self, parts: Sequence[Part]) -> list[Tensor]:
        """Attention of those parts of sequences in one call."""
        q = torch.cat([self.q[s][start : start + count] for s, start, count in parts])
        meta = self.prepare(parts)
        out = self.backend.run(q, *self.storage.layer(0), self.scale, meta, self.softcap)
        return list(out.split([count for _, _, count in parts]))

    def dense(self, sequence: int) -> Tensor:
        """The whole sequence in fp64, of keys and values as they are stored: [length, heads, D]."""
        q = self.q[sequence].double().transpose(0, 1)
        k, v = (self._stored(part, sequence) for part in self.storage.layer(0))
        group = len(q) // len(k)
        scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        scores.masked_fill_(~self._seen(self.lengths[sequence]), -torch.inf)
        return (scores.softmax(-1) @ v.repeat_interleave(group, 0)).transpose(0, 1)

    def _stored(self, cache: KVTensor, sequence: int) -> Tensor:
        """[kv heads, length, D] in fp64."""
        positions = torch.arange(self.lengths[sequence])
        blocks = torch.tensor(self.tables[sequence])[positions // self.block_size]
        slots = blocks * self.block_size + positions % self.block_size
        stored = cache.data[slots].double()
        if cache.scales is not None:
            stored *= cache.scales[slots][..., None].double()
        return stored.transpose(0, 1)

    def _seen(self, length: int) -> Tensor:
        """[length, length]: whether a token (row) sees another."""
        row, column = torch.arange(length)[:, None], torch.arange(length)
        seen = column <= row if self.causal else torch.ones(length, length, dtype=torch.bool)
        return seen if self.window is None else seen & (column > row - self.window)

    def _table(self, sequence: int, start: int) -> list[int]:
        table = self.tables[sequence]
        if self.window is None:
            return table
        gone = max(start - self.window + 1, 0) // self.block_size
        return [self.storage.null_blocks[0]] * gone + table[gone:]


def assert_same_however_it_is_split(sequences: Sequences, rounds: int) -> None:
    """A row has the same bits alone with its sequence, and in any batch or chunk."""
    alone = [sequences.attend([(s, 0, n)])[0] for s, n in enumerate(sequences.lengths)]
    whole = sequences.whole()
    rng = random.Random(0)
    for parts in [
        whole,
        whole[::-1],
        sequences.decode(),
        *(sequences.random_parts(rng) for _ in range(rounds)),
    ]:
        for (sequence, start, count), found in zip(parts, sequences.attend(parts), strict=True):
            assert torch.equal(found, alone[sequence][start : start + count]), parts
