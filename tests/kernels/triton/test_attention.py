"""Paged attention in Triton, by its interpreter: right, and a row's bits its own."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.paged import CPU, Heads, Sequences, assert_same_however_it_is_split

from tests.kernels.triton import interpreted  # isort: skip
from rosellm.roseinfer.attention import tiles  # isort: skip
from rosellm.roseinfer.attention.triton import TritonAttention  # isort: skip

assert interpreted.triton.knobs.runtime.interpret
# numpy tells of infinities that the kernels mean
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
CASES = {
    "grouped": {"heads": (4, 2, 16), "dtype": torch.float32, "lengths": [1, 17, 70]},
    "odd": {"heads": (3, 1, 20), "dtype": torch.float32, "lengths": [23, 64], "window": 9},
    "bf16": {"heads": (6, 2, 10), "dtype": torch.bfloat16, "lengths": [5, 66], "softcap": 30.0},
    "fp16": {"heads": (2, 2, 24), "dtype": torch.float16, "lengths": [40], "window": 33},
    "int8": {"heads": (2, 1, 8), "dtype": torch.float32, "lengths": [9, 65], "kv": torch.int8},
    "int8 beside fp16": {"heads": (2, 1, 8), "dtype": torch.float16, "lengths": [40],
                         "kv": torch.int8},
    "an encoder": {"heads": (2, 2, 8), "dtype": torch.float32, "lengths": [3, 70],
                   "causal": False},
    "many queries a key": {"heads": (67, 1, 4), "dtype": torch.float32, "lengths": [3, 2]},
}  # fmt: skip


def sequences(heads: Heads, dtype: torch.dtype, lengths: list[int], **more: object) -> Sequences:
    """In blocks of 4."""
    group = heads[0] // heads[1]
    return Sequences(
        heads,
        4,
        dtype,
        more.get("window"),  # type: ignore[arg-type]
        lengths,
        lambda block_size: TritonAttention(block_size, CPU, group),
        softcap=more.get("softcap"),  # type: ignore[arg-type]
        causal=more.get("causal", True),  # type: ignore[arg-type]
        kv_dtype=more.get("kv"),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", CASES)
def test_equals_dense_attention(name: str) -> None:
    made = sequences(**CASES[name])  # type: ignore[arg-type]
    for sequence, found in enumerate(made.attend(made.whole())):
        wanted = made.dense(sequence)
        tolerance = TOLERANCE[found.dtype] * (2 if "kv" in CASES[name] else 1)
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short past is divided."""
    monkeypatch.setattr(tiles, "SPLIT", 64)
    monkeypatch.setattr("rosellm.roseinfer.attention.triton.SPLIT", 64)


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 70])
def test_a_divided_past_has_the_bits_of_a_whole_one(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sequences((2, 1, 8), torch.float32, [150], window=window)
    divided = made.attend([(0, 100, 50)])[0]
    assert made.prepare([(0, 100, 50)]).parts > 0  # type: ignore[attr-defined]
    monkeypatch.setattr(tiles, "SPLIT_TILES", 0)
    assert made.prepare([(0, 100, 50)]).parts == 0  # type: ignore[attr-defined]
    assert torch.equal(made.attend([(0, 100, 50)])[0], divided)
    wanted = made.dense(0)[100:]
    torch.testing.assert_close(divided.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str
)
def test_bits_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    assert_same_however_it_is_split(sequences((4, 2, 8), dtype, [1, 40, 133]), rounds=1)


@pytest.mark.slow
@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("name", [name for name in CASES if name != "an encoder"])
def test_bits_do_not_depend_on_the_batch_wide(name: str) -> None:
    case = {**CASES[name], "lengths": [1, 15, 64, 70, 140]}
    assert_same_however_it_is_split(sequences(**case), rounds=4)  # type: ignore[arg-type]


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("window", [None, 40])
def test_a_step_in_a_graphs_arrays(window: int | None) -> None:
    """What is captured for so many blocks serves every step of as many sequences."""
    made = sequences((2, 1, 8), torch.float32, [130, 3, 66], window=window)
    parts = made.decode()
    wanted = made.attend(parts)
    starts, tables = [start for _, start, _ in parts], [made._table(s, p) for s, p, _ in parts]
    metas = [
        made.backend.prepare(starts, [1] * 3, tables, 0, window, blocks=blocks)
        for blocks in (33, 50)
    ]
    for meta in metas:
        q = torch.cat([made.q[s][start : start + 1] for s, start, _ in parts])
        out = made.backend.run(q, *made.storage.layer(0), made.scale, meta)
        assert torch.equal(out, torch.cat(wanted))
    other = made.backend.prepare([0] * 3, [1] * 3, [[1]] * 3, 0, window, blocks=50)
    shapes = [
        [part.shape for part in (m.items, m.merges, m.tables, m.slots)] for m in (metas[1], other)
    ]
    assert shapes[0] == shapes[1]
    assert metas[1].parts == other.parts


def test_tiles_cover_every_row_once() -> None:
    rng = random.Random(1)
    for _ in range(30):
        count = rng.randint(1, 5)
        starts = [rng.randint(0, 3000) for _ in range(count)]
        lengths = [rng.choice([1, 1, rng.randint(1, 400)]) for _ in range(count)]
        ends = [a + b for a, b in zip(starts, lengths, strict=True)]
        tables = [list(range(-(-end // 16))) for end in ends]
        window = rng.choice([None, 1, 100, 513])
        step = tiles.tile_step(starts, lengths, tables, 16, 16, window, True)
        seen: dict[int, set[int]] = {}
        for _, batch_row, position, height, _, first, last, _ in step.items.tolist():
            for row in range(batch_row, batch_row + height):
                own = position + row - batch_row
                wanted = set(range(first, last))
                assert not seen.setdefault(row, set()) & wanted, "no split twice"
                seen[row] |= wanted
                low = 0 if window is None else max(own - window + 1, 0)
                seen[row] -= set(range(low // tiles.SPLIT))  # of other rows in the tile
        positions = [p for a, b in zip(starts, ends, strict=True) for p in range(a, b)]
        for row, own in enumerate(positions):
            low = 0 if window is None else max(own - window + 1, 0)
            assert seen[row] >= set(range(low // tiles.SPLIT, own // tiles.SPLIT + 1))
