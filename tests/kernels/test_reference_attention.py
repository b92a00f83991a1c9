"""Paged attention: right (against torch's own, dense), and the same in any batch or chunk."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.paged import Sequences, assert_same_however_it_is_split

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
QUICK = [(4, 1, 16), (6, 2, 10), (7, 1, 3), (3, 3, 1), (9, 3, 80)]
ANY_HEADS = pytest.mark.parametrize(
    "heads",
    [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in HEADS],
    ids=str,
)


@pytest.mark.parametrize("window", [None, 1, 40, 128])
@pytest.mark.parametrize("block_size", [1, pytest.param(4, marks=pytest.mark.slow), 16])
@ANY_HEADS
def test_equals_dense_attention(
    heads: tuple[int, int, int], block_size: int, window: int | None
) -> None:
    sequences = Sequences(heads, block_size, torch.float32, window, LENGTHS)
    rng = random.Random(block_size)
    for parts in (sequences.whole(), sequences.random_parts(rng)):
        for (sequence, start, count), found in zip(parts, sequences.attend(parts), strict=True):
            wanted = sequences.dense(sequence)[start : start + count]
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", HEADS[3:6], ids=str)
def test_half_precision_rounds_only_its_result(
    heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    sequences = Sequences(heads, 16, dtype, None, LENGTHS)
    for sequence, found in enumerate(sequences.attend(sequences.whole())):
        assert found.dtype == dtype
        wanted = sequences.dense(sequence)
        step = torch.finfo(dtype).eps
        torch.testing.assert_close(found.double(), wanted, rtol=step, atol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
@ANY_HEADS
def test_an_int8_cache(heads: tuple[int, int, int], window: int | None) -> None:
    sequences = Sequences(heads, 4, torch.float32, window, LENGTHS, kv_dtype=torch.int8)
    for sequence, found in enumerate(sequences.attend(sequences.whole())):
        wanted = sequences.dense(sequence)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert_same_however_it_is_split(sequences, rounds=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 40])
@ANY_HEADS
def test_bits_do_not_depend_on_the_batch(
    heads: tuple[int, int, int], window: int | None, dtype: torch.dtype
) -> None:
    assert_same_however_it_is_split(Sequences(heads, 4, dtype, window, LENGTHS), rounds=6)


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
        assert_same_however_it_is_split(Sequences(heads, 16, dtype, None, LENGTHS), rounds=40)
    finally:
        torch.set_num_threads(before)


def test_block_tables_do_not_show() -> None:
    """The same sequence in other blocks, of another size, has the same bits."""
    outputs = []
    for block_size in (1, 4, 16, 64):
        sequences = Sequences((6, 2, 10), 16, torch.float32, None, LENGTHS)
        moved = Sequences((6, 2, 10), block_size, torch.float32, None, LENGTHS)
        moved.q, moved.k, moved.v = sequences.q, sequences.k, sequences.v
        moved.fill_cache()
        outputs.append(torch.cat(moved.attend(moved.whole())))
    assert all(torch.equal(output, outputs[0]) for output in outputs)
