"""Which blocks a sequence holds, and which prefixes are already computed.

Knows tokens only as input to hashes. A block's hash covers its parent's hash,
so equal hashes mean equal prefixes; the chain starts at a random root mixed
with whatever must not be shared across (tenant, salt), so that nobody can
guess what others have asked.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Sequence

from rosellm.roseinfer.cache.blocks import BlockPool

HASHES_PER_CALL = 1024
"""Bound on the work of one ``match`` call (about 2 ms), so that a long prompt stalls no step."""


class SequenceKV:
    """What one sequence holds: a block table per KV group, and its prefix hashes."""

    __slots__ = ("hashes", "published", "root", "tables")

    def __init__(self, root: bytes, num_groups: int) -> None:
        self.root = root
        self.tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.hashes: list[bytes] = []
        self.published = 0


class CacheManager:
    """Block tables over one pool per KV group.

    Args:
        pools: blocks of each KV group.
        block_size: tokens in a block.
        prefix_cache: whether computed blocks can be found again.
    """

    def __init__(self, pools: Sequence[BlockPool], block_size: int, prefix_cache: bool) -> None:
        self.pools = list(pools)
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._root = os.urandom(16)

    def new_sequence(self, *keys: str) -> SequenceKV:
        """An empty holding; only sequences with equal ``keys`` share blocks."""
        root = hashlib.blake2b(self._root, digest_size=16)
        for key in keys:
            data = key.encode()
            root.update(len(data).to_bytes(8, "little") + data)
        return SequenceKV(root.digest(), len(self.pools))

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, kv: SequenceKV, tokens: Sequence[int]) -> list[list[int]] | None:
        """Blocks that already hold a prefix of ``tokens``, per group (not yet taken).

        The last token is always left to compute. None means that the hashing budget of
        this call is used up: call again in the next step.
        """
        if not self._prefix_cache:
            return [[] for _ in self.pools]
        limit = (len(tokens) - 1) // self.block_size
        known = min(len(kv.hashes), limit)
        hits = self._find(kv.hashes[:known])
        if len(hits[0]) < known:
            return hits
        for index in range(known, limit):
            if index == known + HASHES_PER_CALL:
                return None
            found = self._find([self._hash(kv, tokens, index)])
            if not found[0]:
                break
            for group, blocks in zip(hits, found, strict=True):
                group += blocks
        return hits

    def can_take(self, hits: list[list[int]], num_tokens: int, reserve: int) -> bool:
        """Whether blocks for ``num_tokens`` could be held and ``reserve`` be left over."""
        need = self.blocks_for(num_tokens)
        return all(
            need - len(group) + sum(map(pool.is_cached, group)) + reserve <= pool.available
            for pool, group in zip(self.pools, hits, strict=True)
        )

    def take(self, kv: SequenceKV, hits: list[list[int]]) -> int:
        """Hold the blocks that ``match`` found; return how many tokens they cover."""
        for pool, table, group in zip(self.pools, kv.tables, hits, strict=True):
            assert not table
            for block in group:
                pool.share(block)
            table.extend(group)
        kv.published = len(hits[0])
        return kv.published * self.block_size

    def grow(self, kv: SequenceKV, num_tokens: int) -> bool:
        """Hold enough blocks for ``num_tokens``; False, and nothing done, if there are none."""
        need = self.blocks_for(num_tokens)
        missing = [need - len(table) for table in kv.tables]
        if any(n > pool.available for n, pool in zip(missing, self.pools, strict=True)):
            return False
        for pool, table, n in zip(self.pools, kv.tables, missing, strict=True):
            if n > 0:
                table.extend(pool.allocate(n))
        return True

    def publish(self, kv: SequenceKV, tokens: Sequence[int], num_computed: int) -> None:
        """Make blocks that are full and computed findable by others."""
        if not self._prefix_cache:
            return
        full = num_computed // self.block_size
        for index in range(kv.published, full):
            block_hash = self._hash(kv, tokens, index)
            for pool, table in zip(self.pools, kv.tables, strict=True):
                pool.publish(table[index], block_hash)
        kv.published = max(kv.published, full)

    def release(self, kv: SequenceKV) -> None:
        """Let go of every block. Hashes stay: the tokens have not changed."""
        for pool, table in zip(self.pools, kv.tables, strict=True):
            pool.release(table)
            table.clear()
        kv.published = 0

    def flush(self) -> None:
        """Forget every prefix that no sequence holds."""
        for pool in self.pools:
            pool.flush()

    def check(self, holders: Iterable[SequenceKV]) -> None:
        """Raise AssertionError unless references are exactly the holders' tables."""
        holders = list(holders)
        for group, pool in enumerate(self.pools):
            pool.check()
            counts = [0] * pool.total
            for kv in holders:
                for block in kv.tables[group]:
                    counts[block] += 1
            assert counts == [pool.references(b) for b in range(pool.total)]

    def _find(self, hashes: Sequence[bytes]) -> list[list[int]]:
        """Blocks with these contents, per group, as far as every group has them."""
        found = [pool.find(hashes) for pool in self.pools]
        length = min(map(len, found))
        return [blocks[:length] for blocks in found]

    def _hash(self, kv: SequenceKV, tokens: Sequence[int], index: int) -> bytes:
        """Hash of block ``index``; earlier ones are known already."""
        if index < len(kv.hashes):
            return kv.hashes[index]
        parent = kv.hashes[-1] if kv.hashes else kv.root
        start = index * self.block_size
        content = array("q", tokens[start : start + self.block_size]).tobytes()
        kv.hashes.append(hashlib.blake2b(parent + content, digest_size=16).digest())
        return kv.hashes[-1]
