"""One KV group's blocks: free, used (by how many), or cached.

Knows neither tokens nor tensors. A block is

* *free*: its content means nothing;
* *used*: one or more sequences refer to it;
* *cached*: nobody refers to it, but its content is known by hash and can be
  shared again; cached blocks are evicted least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted blocks, numbered 0 to ``total - 1``."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = [0] * total
        self._hash: list[bytes | None] = [None] * total
        self._by_hash: dict[bytes, int] = {}
        self._free = list(range(total - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self.free - self.cached

    @property
    def available(self) -> int:
        """Blocks that ``allocate`` can hand out."""
        return len(self._free) + len(self._cached)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks for exclusive use; cached ones are evicted if need be."""
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
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
            del self._cached[block]
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
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def flush(self) -> None:
        """Forget all cached blocks."""
        while self._cached:
            self._free.append(self._evict())

    def references(self, block: int) -> int:
        return self._references[block]

    def check(self) -> None:
        """Raise AssertionError if the bookkeeping contradicts itself."""
        free, cached = set(self._free), set(self._cached)
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

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        block_hash = self._hash[block]
        assert block_hash is not None
        del self._by_hash[block_hash]
        self._hash[block] = None
        return block
