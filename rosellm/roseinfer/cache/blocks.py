"""One KV group's blocks: free, used (by how many), or cached.

Knows neither tokens nor tensors. A block is

* *free*: its content means nothing;
* *used*: one or more sequences refer to it;
* *cached*: nobody refers to it, but its content is known by hash and can be
  shared again.

A block that is not free has an owner. Evicted is a block of whoever asks for one, or of an owner
who holds more than an equal share of the pool, used and cached together: of the one who holds most,
and of that one's the least recently used. So whoever fills the pool loses what is its own, and all
that hold something come to equal shares. What is within a share goes when nothing else is left.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted blocks, numbered 0 to ``total - 1``."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = [0] * total
        self._hash: list[bytes | None] = [None] * total
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(total - 1, -1, -1))
        self._owner = [""] * total
        self._held: Counter[str] = Counter()
        self._cached: dict[str, OrderedDict[int, int]] = {}  # by owner: blocks, and since when
        self._num_cached = 0
        self._time = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return self._num_cached

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached

    @property
    def available(self) -> int:
        """Blocks that ``allocate`` can hand out."""
        return len(self._free) + self._num_cached

    def kept_from(self, owner: str) -> int:
        """Cached blocks that others hold within equal shares of the pool."""
        share = self._share(owner)
        return sum(
            min(len(cached), max(0, share - self._held[other] + len(cached)))
            for other, cached in self._cached.items()
            if other != owner
        )

    def beyond_share(self, owner: str) -> bool:
        """Whether an owner holds more than an equal share of the pool."""
        return self._held[owner] > self._share(owner)

    def allocate(self, count: int, owner: str = "") -> list[int]:
        """Take ``count`` blocks for exclusive use; cached ones are evicted if need be."""
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict(owner)
            self._references[block] = 1
            self._owner[block] = owner
            self._held[owner] += 1
            blocks.append(block)
        return blocks

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks with these contents, up to the first that is not there."""
        blocks = []
        for block_hash in hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def in_use(self, block: int) -> bool:
        """Whether somebody holds the block, so that it does not count as available."""
        return self._references[block] > 0

    def share(self, block: int) -> None:
        """Add a reference to a block that ``find`` returned."""
        if self._references[block] == 0:
            self._take_out(block)
        self._references[block] += 1

    def publish(self, block: int, block_hash: bytes) -> None:
        """Make a full, computed block findable. An equal block that came first stays the one."""
        if self._hash[block] is None and block_hash not in self._by_hash:
            self._hash[block] = block_hash
            self._by_hash[block_hash] = block

    def retract(self, blocks: Iterable[int]) -> None:
        """Blocks in use whose contents nobody shall find any more."""
        for block in blocks:
            block_hash, self._hash[block] = self._hash[block], None
            if block_hash is not None:
                del self._by_hash[block_hash]

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference each. Later blocks are evicted first: prefixes outlive tails."""
        for block in reversed(list(blocks)):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash[block] is None:
                    self._let_go(block)
                    self._free.append(block)
                else:
                    self._put_in(block)

    def flush(self) -> None:
        """Forget all cached blocks."""
        while self._num_cached:
            self._free.append(self._evict(""))

    def references(self, block: int) -> int:
        return self._references[block]

    def check(self) -> None:
        """Raise AssertionError if the bookkeeping contradicts itself."""
        by_owner = {owner: set(blocks) for owner, blocks in self._cached.items()}
        free, cached = set(self._free), set().union(*by_owner.values())
        assert len(cached) == self._num_cached == sum(map(len, by_owner.values()))
        assert all(blocks for blocks in by_owner.values())
        assert all(self._owner[b] == owner for owner in by_owner for b in by_owner[owner])
        held = Counter(self._owner[block] for block in range(self.total) if block not in free)
        assert held == self._held
        assert all(self._held.values())
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached, "a block is free and cached"
        for block in range(self.total):
            idle = block in free or block in cached
            assert (self._references[block] == 0) == idle, f"block {block} leaked"
            assert self._references[block] >= 0
        assert all(self._hash[b] is not None for b in cached), "cached without a hash"
        assert all(self._hash[b] is None for b in free), "free with a hash"
        for block_hash, block in self._by_hash.items():
            assert self._hash[block] == block_hash

    def _evict(self, asking: str) -> int:
        share = self._share(asking)

        def order(owner: str) -> tuple[bool, int, int]:
            """Largest is first; among those who hold as much, whose block was used longest ago."""
            held, oldest = self._held[owner], next(iter(self._cached[owner].values()))
            return owner == asking or held > share, held, -oldest

        block = next(iter(self._cached[max(self._cached, key=order)]))
        self._take_out(block)
        self._let_go(block)
        block_hash = self._hash[block]
        assert block_hash is not None
        del self._by_hash[block_hash]
        self._hash[block] = None
        return block

    def _share(self, asking: str) -> int:
        """Blocks of each owner if all who hold some, and one who asks, held as many."""
        return self.total // (len(self._held) + (asking not in self._held))

    def _put_in(self, block: int) -> None:
        self._time += 1
        self._num_cached += 1
        self._cached.setdefault(self._owner[block], OrderedDict())[block] = self._time

    def _take_out(self, block: int) -> None:
        blocks = self._cached[self._owner[block]]
        del blocks[block]
        self._num_cached -= 1
        if not blocks:
            del self._cached[self._owner[block]]

    def _let_go(self, block: int) -> None:
        owner = self._owner[block]
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
