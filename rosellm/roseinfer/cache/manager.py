"""Which blocks a sequence holds, and which prefixes are already computed.

Knows tokens only as input to hashes. A block's hash covers its parent's hash,
so equal hashes mean equal prefixes; the chain starts at a random root mixed
with whatever must not be shared across (tenant, salt, the type of the cache),
so that nobody can guess what others have asked.
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
    """What one sequence holds: a block table per KV group, and its prefix hashes.

    Attributes:
        tables: entry i of a table holds positions from i * block size on; blocks that fell
            out of the group's window are replaced by the null block, ``pool.total``.
        gone: per group, how many leading entries are null.
        owner: whose share of the cache its blocks count in.
    """

    __slots__ = ("gone", "hashes", "owner", "published", "root", "tables")

    def __init__(self, root: bytes, num_groups: int, owner: str) -> None:
        self.root = root
        self.owner = owner
        self.tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.gone = [0] * num_groups
        self.hashes: list[bytes] = []
        self.published = 0

    @property
    def held(self) -> int:
        """Blocks of all groups together."""
        return sum(map(len, self.tables)) - sum(self.gone)


class CacheManager:
    """Block tables over one pool per KV group.

    Args:
        pools: blocks of each KV group.
        block_size: tokens in a block.
        prefix_cache: whether computed blocks can be found again.
        windows: per group, how many latest positions a token sees; default: all, everywhere.
        keys: what the content of every block depends on beside its tokens.
    """

    def __init__(
        self,
        pools: Sequence[BlockPool],
        block_size: int,
        prefix_cache: bool,
        windows: Sequence[int | None] | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self.pools = list(pools)
        self.windows = [None] * len(self.pools) if windows is None else list(windows)
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._root = os.urandom(16)
        self._keys = tuple(keys)

    def new_sequence(self, owner: str = "", *keys: str) -> SequenceKV:
        """An empty holding; only sequences with equal owners and ``keys`` share blocks."""
        root = hashlib.blake2b(self._root, digest_size=16)
        for key in (*self._keys, owner, *keys):
            data = key.encode()
            root.update(len(data).to_bytes(8, "little") + data)
        return SequenceKV(root.digest(), len(self.pools), owner)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def longest(self, chunk: int) -> int | None:
        """Tokens that one sequence, computed in chunks, may have; None if any number."""
        bounds = [
            pool.total * self.block_size
            for pool, window in zip(self.pools, self.windows, strict=True)
            if window is None or self._most(window, chunk) > pool.total
        ]
        return min(bounds, default=None)

    def blocks_at_most(self, num_tokens: int, chunk: int) -> int:
        """Blocks of all groups that are held while so many tokens are computed in chunks."""
        return sum(self._peak(window, num_tokens, chunk) for window in self.windows)

    def no_match(self) -> list[list[int]]:
        """What ``match`` returns when nothing is found."""
        return [[] for _ in self.pools]

    def match(self, kv: SequenceKV, tokens: Sequence[int]) -> list[list[int]] | None:
        """Blocks that already hold a prefix of ``tokens``, per group (not yet taken).

        Of a group with a window only those within it are needed, and the others may be null.
        The last token is always left to compute. None means that the hashing budget of
        this call is used up: call again in the next step.
        """
        if not self._prefix_cache:
            return self.no_match()
        reach = self._reach(kv, tokens, (len(tokens) - 1) // self.block_size)
        if reach is None:
            return None
        hashes = kv.hashes[: self._usable(kv.hashes[:reach])]
        hits = []
        for pool, window in zip(self.pools, self.windows, strict=True):
            first = self._first_seen(window, len(hashes) * self.block_size)
            hits.append([pool.total] * first + pool.find(hashes[first:]))
        return hits

    def can_take(
        self,
        hits: list[list[int]],
        num_tokens: int,
        chunk: int,
        reserve: int,
        owner: str | None = None,
    ) -> bool:
        """Whether ``num_tokens``, computed in chunks, could be held and ``reserve`` be left.

        Args:
            owner: if given, others keep what they have cached within their shares.
        """
        return all(
            self._peak(window, num_tokens, chunk) + reserve
            <= pool.available
            - (0 if owner is None else pool.kept_from(owner))
            + sum(pool.in_use(block) for block in group if block != pool.total)
            for pool, window, group in zip(self.pools, self.windows, hits, strict=True)
        )

    def take(self, kv: SequenceKV, hits: list[list[int]]) -> int:
        """Hold the blocks that ``match`` found; return how many tokens they cover."""
        for index, (pool, group) in enumerate(zip(self.pools, hits, strict=True)):
            assert not kv.tables[index]
            kv.tables[index].extend(group)
            kv.gone[index] = sum(block == pool.total for block in group)
            for block in group[kv.gone[index] :]:
                pool.share(block)
        kv.published = len(hits[0])
        return kv.published * self.block_size

    def grow(
        self, kv: SequenceKV, num_tokens: int, reserve: int = 0, *, sparing: bool = False
    ) -> bool:
        """Hold enough blocks for ``num_tokens``; False, and nothing done, if there are none.

        Args:
            reserve: blocks of each group that must be left.
            sparing: whether other owners keep what they have cached within their shares.
        """
        need = self.blocks_for(num_tokens)
        missing = [need - len(table) for table in kv.tables]
        for n, pool in zip(missing, self.pools, strict=True):
            kept = pool.kept_from(kv.owner) if sparing and n > 0 else 0
            if n > 0 and n > pool.available - reserve - kept:
                return False
        for pool, table, n in zip(self.pools, kv.tables, missing, strict=True):
            if n > 0:
                table.extend(pool.allocate(n, kv.owner))
        return True

    def beyond_share(self, owner: str) -> bool:
        """Whether an owner holds more than an equal share of a group's blocks."""
        return any(pool.beyond_share(owner) for pool in self.pools)

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

    def trim(self, kv: SequenceKV, num_computed: int) -> None:
        """Let go of blocks that no token from position ``num_computed`` on can see."""
        for index, (pool, window) in enumerate(zip(self.pools, self.windows, strict=True)):
            table, gone = kv.tables[index], kv.gone[index]
            first = min(self._first_seen(window, num_computed), len(table))
            if first > gone:
                pool.release(table[gone:first])
                table[gone:first] = [pool.total] * (first - gone)
                kv.gone[index] = first

    def retract(self, kv: SequenceKV) -> None:
        """Let nobody else find what a sequence holds: it may be wrong."""
        for pool, table, gone in zip(self.pools, kv.tables, kv.gone, strict=True):
            pool.retract(table[gone:])

    def release(self, kv: SequenceKV) -> None:
        """Let go of every block. Hashes stay: the tokens have not changed."""
        for pool, table, gone in zip(self.pools, kv.tables, kv.gone, strict=True):
            pool.release(table[gone:])
            table.clear()
        kv.gone = [0] * len(self.pools)
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
                gone, table = kv.gone[group], kv.tables[group]
                assert all((block == pool.total) == (i < gone) for i, block in enumerate(table))
                for block in table[gone:]:
                    counts[block] += 1
            assert counts == [pool.references(b) for b in range(pool.total)]

    def _first_seen(self, window: int | None, position: int) -> int:
        """Index of the first block that a token at ``position`` sees."""
        return 0 if window is None else max(position - window + 1, 0) // self.block_size

    def _peak(self, window: int | None, num_tokens: int, chunk: int) -> int:
        """Most blocks of a group that a sequence holds while ``num_tokens`` are computed."""
        need = self.blocks_for(num_tokens)
        return need if window is None else min(need, self._most(window, chunk))

    def _most(self, window: int, chunk: int) -> int:
        """Blocks that a window and a chunk can touch, wherever they begin."""
        return self.blocks_for(window - 1 + chunk) + 1

    def _reach(self, kv: SequenceKV, tokens: Sequence[int], limit: int) -> int | None:
        """How many leading blocks are hashed and held by all groups that keep everything."""
        complete = [p for p, w in zip(self.pools, self.windows, strict=True) if w is None]
        known = min(len(kv.hashes), limit)
        found = min((len(pool.find(kv.hashes[:known])) for pool in complete), default=known)
        if found < known:
            return found
        for index in range(known, limit):
            if index == known + HASHES_PER_CALL:
                return None
            block_hash = self._hash(kv, tokens, index)
            if not all(pool.find([block_hash]) for pool in complete):
                return index
        return limit

    def _usable(self, hashes: Sequence[bytes]) -> int:
        """The longest prefix, in blocks, whose last window every windowed group still holds."""
        length = len(hashes)
        while length and (missing := self._last_missing(hashes, length)) is not None:
            length = missing
        return length

    def _last_missing(self, hashes: Sequence[bytes], length: int) -> int | None:
        """The last block that a token after ``length`` blocks would miss, if there is one."""
        for pool, window in zip(self.pools, self.windows, strict=True):
            if window is not None:
                first = self._first_seen(window, length * self.block_size)
                for index in range(length - 1, first - 1, -1):
                    if not pool.find([hashes[index]]):
                        return index
        return None

    def _hash(self, kv: SequenceKV, tokens: Sequence[int], index: int) -> bytes:
        """Hash of block ``index``; earlier ones are known already."""
        if index < len(kv.hashes):
            return kv.hashes[index]
        parent = kv.hashes[-1] if kv.hashes else kv.root
        start = index * self.block_size
        content = array("q", tokens[start : start + self.block_size]).tobytes()
        kv.hashes.append(hashlib.blake2b(parent + content, digest_size=16).digest())
        return kv.hashes[-1]
