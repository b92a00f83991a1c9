"""Native paged attention: dense fp64 is the measure, at every level; and bits are the rows' own."""

from __future__ import annotations

import random
from ctypes import byref

import pytest
import torch

from rosellm.roseinfer.attention.native import NativeAttention
from rosellm.roseinfer.kernels.cpu import structs
from tests.kernels.paged import Heads, Sequences, assert_same_however_it_is_split, by_reference

LENGTHS = [1, 5, 31, 64, 65, 130, 300]
# heads, KV heads, head dim
HEADS = [
    (1, 1, 2),
    (4, 1, 16),
    (6, 2, 10),
    (7, 1, 3),
    (9, 9, 31),
    (2, 2, 64),
    (6, 2, 80),
    (5, 5, 96),
    (8, 4, 128),
    (2, 1, 256),
    (33, 1, 6),
]
QUICK = [(6, 2, 10), (7, 1, 3), (9, 9, 31), (8, 4, 128), (2, 1, 256)]
ANY_HEADS = pytest.mark.parametrize(
    "heads",
    [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in HEADS],
    ids=str,
)
# of values of about 1: as much as rounding weights that add up to 1 to bf16 can come to
BF16_ERROR = 0.02
# over a cache in 8 bits: queries and weights of two digits of 7 bits, or bf16
INT8_ERRORS = {"avx512": 4e-4, "avx512_bf16": 4e-4, "amx": BF16_ERROR}


@pytest.fixture
def sequences(library):
    """Make sequences that the native kernels attend."""

    def make(heads, block_size, dtype, window, lengths=LENGTHS, **options):
        backend = lambda size: NativeAttention(size, library)  # noqa: E731
        return Sequences(heads, block_size, dtype, window, lengths, backend, **options)

    return make


def assert_equals_dense(made: Sequences, parts, error: float = 1e-5) -> None:
    made.q = [q.float() for q in made.q]  # so that the output is not rounded
    for (sequence, start, count), found in zip(parts, made.attend(parts), strict=True):
        wanted = made.dense(sequence)[start : start + count]
        torch.testing.assert_close(found.double(), wanted, rtol=error, atol=error)


@ANY_HEADS
def test_equals_dense_attention(sequences, level, heads: Heads):
    rng = random.Random(0)
    for block_size, window in [(16, None), (1, 1), (7, 37), (64, 6), (4, 200)]:
        made = sequences(heads, block_size, torch.float32, window)
        assert_equals_dense(made, made.random_parts(rng))
        assert_equals_dense(made, made.random_parts(rng))


@pytest.mark.parametrize("heads", [(6, 2, 10), (9, 9, 31), (8, 4, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_cache_is_read_exactly(sequences, level, dtype, heads: Heads):
    made = sequences(heads, 16, dtype, None)
    multiplied = level in ("avx512_bf16", "amx") and dtype == torch.bfloat16  # by bf16, not by fp32
    assert_equals_dense(made, made.whole(), BF16_ERROR if multiplied else 1e-5)


def test_bf16_products_are_as_good_as_rounded_operands(sequences, level):
    """Not only below a bound: the error is that of bf16, at random, and not a bias."""
    made = sequences((8, 4, 128), 16, torch.bfloat16, None, [400])
    made.q = [q.float() for q in made.q]
    errors = made.attend(made.whole())[0].double() - made.dense(0)
    assert errors.square().mean().sqrt() < 1e-3
    assert errors.mean().abs() < 1e-5


@pytest.mark.parametrize("heads", [(6, 2, 10), (8, 4, 64)], ids=str)
def test_scores_are_capped(sequences, level, heads: Heads):
    made = sequences(heads, 16, torch.float32, 50, softcap=0.7)
    assert_equals_dense(made, made.whole())


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", [(6, 2, 10), (12, 12, 64)], ids=str)
def test_an_encoder_sees_both_ways(sequences, level, heads: Heads, window):
    made = sequences(heads, 16, torch.float32, window, causal=False)
    assert_equals_dense(made, made.whole())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(6, 2, 10), (5, 5, 64), (6, 2, 48), (8, 4, 128)], ids=str)
def test_bits_do_not_depend_on_the_batch(sequences, level, dtype, heads: Heads):
    for window in (None, 37):
        assert_same_however_it_is_split(sequences(heads, 4, dtype, window), rounds=4)


@pytest.mark.parametrize("window", [None, 700])
def test_bits_of_long_sequences_do_not_depend_on_chunks(sequences, level, window):
    """Long enough for several splits of their positions, which threads share."""
    lengths = [255, 256, 257, 1500]
    made = sequences((4, 2, 64), 16, torch.bfloat16, window, lengths)
    assert_same_however_it_is_split(made, rounds=3)


def test_bits_do_not_depend_on_threads(sequences, library, level):
    before = library.threads
    outputs = []
    for count in (1, 2, 4):
        library.set_threads(count)
        made = sequences((4, 2, 64), 16, torch.float32, None, [1, 70, 1100, 1300])
        outputs.append(torch.cat(made.attend(made.whole()) + made.attend(made.decode())))
    library.set_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_token_by_token_is_the_same_as_at_once(sequences, level):
    made = sequences((6, 2, 32), 16, torch.bfloat16, None, [150])
    whole = made.attend(made.whole())[0]
    for position in range(150):
        assert torch.equal(made.attend([(0, position, 1)])[0][0], whole[position])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiny_and_huge_numbers_have_their_bits_in_any_batch(sequences, level, dtype):
    """Some are too small for a normal number, or make weights that are."""
    made = sequences((4, 2, 64), 16, dtype, None, [70, 300])
    generator = torch.Generator().manual_seed(5)
    for k, v in zip(made.k, made.v, strict=True):
        for rows, sizes in ((k, (1e-39, 1e-20, 1.0, 30.0)), (v, (1e-39, 3e-38, 1.0, 1e30))):
            choice = torch.randint(len(sizes), rows.shape[:1], generator=generator)
            rows *= torch.tensor(sizes)[choice].reshape(-1, *[1] * (rows.dim() - 1)).to(dtype)
    made.fill_cache()
    assert_same_however_it_is_split(made, rounds=4)


def test_block_tables_do_not_show(sequences, level):
    outputs = []
    for block_size in (1, 4, 16, 64):
        first = sequences((6, 2, 10), 16, torch.float32, None)
        moved = sequences((6, 2, 10), block_size, torch.float32, None)
        moved.q, moved.k, moved.v = first.q, first.k, first.v
        moved.fill_cache()
        outputs.append(torch.cat(moved.attend(moved.whole())))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_only_the_output_is_written(sequences, library, level):
    made = sequences((6, 2, 10), 16, torch.float32, None, [70, 3])
    meta = made.prepare(made.whole())
    q = torch.cat(made.q).flatten(1)
    wide = torch.full((len(q) + 2, 90), 7.0)
    out = wide[1:-1, 10:70]
    keys, values = made.storage.layer(0)
    written = keys.data, values.data, q
    before = [part.clone() for part in written]
    rows = (structs.Activations.of(part) for part in (q, out))
    call = structs.Attention(*rows, 6, made.scale, 0.0)
    cache = structs.KvCache.of(keys, values)
    library.c.rose_attention(byref(call), byref(meta.sequences), byref(cache))
    wanted = torch.cat(made.attend(made.whole())).flatten(1)
    assert torch.equal(out, wanted)
    out.fill_(7.0)
    assert (wide == 7.0).all()
    for now, then in zip(written, before, strict=True):
        assert torch.equal(now.view(torch.int32), then.view(torch.int32))


def test_the_output_may_replace_the_queries(sequences, library, level):
    made = sequences((4, 2, 64), 16, torch.float32, None, [70, 1200])
    for parts in (made.whole(), made.decode()):
        q = torch.cat([made.q[s][start : start + count] for s, start, count in parts]).flatten(1)
        rows = structs.Activations.of(q)
        call = structs.Attention(rows, rows, 4, made.scale, 0.0)
        cache = structs.KvCache.of(*made.storage.layer(0))
        meta = made.prepare(parts)
        library.c.rose_attention(byref(call), byref(meta.sequences), byref(cache))
        assert torch.equal(q, torch.cat(made.attend(parts)).flatten(1))


@ANY_HEADS
def test_an_int8_cache(sequences, level, heads: Heads):
    """Windows, both directions, capped scores; and bits are the rows' own."""
    error = INT8_ERRORS.get(level, 1e-5)
    rng = random.Random(3)
    for block_size, window in [(16, None), (1, 1), (7, 37), (4, 150)]:
        made = sequences(heads, block_size, torch.float32, window, kv_dtype=torch.int8)
        assert_equals_dense(made, made.whole(), error)
        assert_equals_dense(made, made.random_parts(rng), error)
        assert_same_however_it_is_split(made, rounds=2)
    for options in ({"softcap": 0.7}, {"causal": False}):
        made = sequences(heads, 16, torch.float32, None, kv_dtype=torch.int8, **options)
        assert_equals_dense(made, made.whole(), error)


def test_an_int8_cache_is_read_as_by_the_reference(sequences, level):
    """The same numbers in the cache, so only the order of sums (and bf16) is between them."""
    for heads in [(6, 2, 10), (8, 4, 128), (7, 1, 3)]:
        made = sequences(heads, 16, torch.float32, 90, kv_dtype=torch.int8, softcap=5.0)
        found = torch.cat(made.attend(made.whole()))
        made.backend = by_reference(16)
        wanted = torch.cat(made.attend(made.whole()))
        error = INT8_ERRORS.get(level, 1e-5)
        torch.testing.assert_close(found, wanted, rtol=error, atol=error)


def test_int8_products_are_as_good_as_rounded_operands(sequences, level):
    """The error beside what is stored is that of bf16 at most, and no bias."""
    made = sequences((8, 4, 128), 16, torch.float32, None, [400], kv_dtype=torch.int8)
    errors = made.attend(made.whole())[0].double() - made.dense(0)
    assert errors.square().mean().sqrt() < 1e-3
    assert errors.mean().abs() < 1e-5


@pytest.mark.parametrize("heads", [(8, 4, 128), (6, 2, 10)], ids=str)
def test_what_is_no_number_over_an_int8_cache_shows(sequences, level, heads: Heads):
    """In the rows that see it, and nowhere else, in a prompt and token by token."""
    made = sequences(heads, 16, torch.float32, None, [90, 40], kv_dtype=torch.int8)
    clean = made.attend(made.whole())
    made.q[0][5, 1, 3] = torch.nan
    made.k[0][70, 1, 2] = torch.inf
    made.v[1][20, 0, 1] = torch.nan
    made.fill_cache()
    found = made.attend(made.whole())
    group = heads[0] // heads[1]
    wrong = [torch.zeros(length, heads[0], dtype=torch.bool) for length in made.lengths]
    wrong[0][5, 1] = True
    wrong[0][70:, group : 2 * group] = True
    wrong[1][20:, :group] = True
    for sequence, (rows, before) in enumerate(zip(found, clean, strict=True)):
        assert torch.equal(rows.isnan().all(-1), wrong[sequence])
        assert torch.equal(rows[~wrong[sequence]], before[~wrong[sequence]])
        for position in (5, 6, 20, 39):
            [[alone]] = made.attend([(sequence, position, 1)])
            assert torch.equal(alone.view(torch.int32), rows[position].view(torch.int32))


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_queries_of_any_size_over_an_int8_cache(sequences, level, factor):
    made = sequences((8, 4, 64), 16, torch.float32, None, [70], kv_dtype=torch.int8)
    wanted = torch.cat(made.attend(made.whole()))
    made.scale /= factor
    made.q = [q * factor for q in made.q]
    found = torch.cat(made.attend(made.whole()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 700])
def test_bits_of_long_int8_sequences_do_not_depend_on_chunks(sequences, level, threads, window):
    lengths = [255, 256, 257, 1500]
    made = sequences((4, 2, 64), 16, torch.bfloat16, window, lengths, kv_dtype=torch.int8)
    assert_same_however_it_is_split(made, rounds=2)


def test_slots_are_where_the_tables_say(sequences, library):
    made = sequences((1, 1, 2), 4, torch.float32, None, [9, 1, 30])
    parts = [(2, 3, 20), (0, 8, 1), (1, 0, 1)]
    slots = made.backend.slots(made.prepare(parts)).tolist()
    assert slots == [
        made.tables[s][position // 4] * 4 + position % 4
        for s, start, count in parts
        for position in range(start, start + count)
    ]


def test_a_changed_block_table_is_noticed(library):
    """Packed tables are kept from step to step: those that are still the same."""
    backend = NativeAttention(4, library)
    table = [3, 5]
    assert backend.slots(backend.prepare([4], [1], [table], 9)).tolist() == [20]
    table[1] = 2
    assert backend.slots(backend.prepare([4], [1], [table], 9)).tolist() == [8]
    tables = [(1,), (3, 2)]
    assert backend.slots(backend.prepare([0, 7], [1, 1], tables, 9)).tolist() == [4, 11]
