"""Blocks and prefixes, without a scheduler."""

from __future__ import annotations

import time

import pytest
import torch

from rosellm.roseinfer.cache.blocks import BlockPool
from rosellm.roseinfer.cache.manager import CacheManager
from rosellm.roseinfer.cache.storage import KVGroup, KVStorage


def filled(manager: CacheManager, tokens: list[int]) -> None:
    """Let a sequence with these tokens come, be computed and go."""
    kv = manager.new_sequence()
    hits = manager.match(kv, tokens)
    assert hits is not None
    manager.take(kv, hits)
    assert manager.grow(kv, len(tokens))
    manager.publish(kv, tokens, len(tokens))
    manager.release(kv)
    manager.check([])


def cached(manager: CacheManager, tokens: list[int]) -> int:
    """How many blocks a sequence that begins with these tokens would find."""
    hits = manager.match(manager.new_sequence(), [*tokens, 0])
    assert hits is not None
    return len(hits[0])


def test_evicted_first_is_what_was_used_longest_ago_and_tails_before_heads() -> None:
    pool = BlockPool(6)
    manager = CacheManager([pool], 1, prefix_cache=True)
    filled(manager, [1, 2, 3])
    filled(manager, [4, 5, 6])
    kv = manager.new_sequence()
    hits = manager.match(kv, [1, 2, 0])  # these two are used once more
    assert hits is not None
    manager.take(kv, hits)
    manager.release(kv)
    left = [(cached(manager, [1, 2, 3]), cached(manager, [4, 5, 6]))]
    while pool.cached:
        pool.allocate(1)
        left.append((cached(manager, [1, 2, 3]), cached(manager, [4, 5, 6])))
    assert left == [(3, 3), (2, 3), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]


def test_free_blocks_are_taken_before_cached_ones() -> None:
    manager = CacheManager([BlockPool(4)], 2, prefix_cache=True)
    filled(manager, [1, 2, 3, 4])
    kv = manager.new_sequence()
    assert manager.grow(kv, 4)
    assert cached(manager, [1, 2, 3, 4]) == 2
    assert manager.grow(kv, 6)
    assert cached(manager, [1, 2, 3, 4]) == 1


def test_growing_is_all_or_nothing() -> None:
    pools = [BlockPool(4), BlockPool(2)]
    manager = CacheManager(pools, 1, prefix_cache=True)
    kv = manager.new_sequence()
    assert not manager.grow(kv, 3)
    assert [pool.used for pool in pools] == [0, 0]
    assert manager.grow(kv, 2)
    assert [pool.used for pool in pools] == [2, 2]


def test_groups_hit_as_far_as_all_of_them_do() -> None:
    pools = [BlockPool(4), BlockPool(2)]
    manager = CacheManager(pools, 1, prefix_cache=True)
    kv = manager.new_sequence()
    assert manager.grow(kv, 2)
    manager.publish(kv, [1, 2], 2)
    manager.release(kv)
    pools[1].allocate(1)
    hits = manager.match(manager.new_sequence(), [1, 2, 3])
    assert hits is not None
    assert [len(group) for group in hits] == [1, 1]


def test_roots_differ_between_engines() -> None:
    """Nobody can compute another engine's hashes, so nobody can guess what it has cached."""
    hashes = []
    for _ in range(2):
        manager = CacheManager([BlockPool(2)], 1, prefix_cache=True)
        kv = manager.new_sequence()
        manager.match(kv, [1, 2])
        hashes += kv.hashes
    assert len(set(hashes)) == 2


@pytest.mark.alone
def test_looking_up_a_long_prompt_again_is_cheap() -> None:
    """A prompt that waits for room is looked up every step."""
    tokens = [0, 1] * 50_000
    manager = CacheManager([BlockPool(6250)], 16, prefix_cache=True)
    filled(manager, tokens)
    kv = manager.new_sequence()
    while manager.match(kv, tokens) is None:
        pass
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        manager.match(kv, tokens)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.005


def test_blocks_of_another_type_have_other_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The type of keys and values is part of a block's hash, as tenant and salt are."""
    monkeypatch.setattr("os.urandom", bytes)  # one root for all

    def hashes(keys: list[str], *own: str) -> list[bytes]:
        manager = CacheManager([BlockPool(4)], 2, prefix_cache=True, keys=keys)
        kv = manager.new_sequence(*own)
        manager.grow(kv, 4)
        manager.publish(kv, [1, 2, 3, 4], 4)
        return kv.hashes

    assert hashes(["int8"]) == hashes(["int8"])
    different = [hashes(["int8"]), hashes(["float32"]), hashes([]), hashes(["int8"], "tenant")]
    assert len({tuple(each) for each in different}) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_keys_and_values_begin_with_a_line_of_the_cache(dtype: torch.dtype) -> None:
    group = KVGroup((0, 1), 3, 10)
    storage = KVStorage([group], [5], 4, dtype, torch.device("cpu"))
    kept = [part for layer in (0, 1) for part in storage.layer(layer)]
    assert all(part.data.data_ptr() % 64 == 0 for part in kept)
    assert all(not part.data.any() for part in kept)
