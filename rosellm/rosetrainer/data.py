"""Packed batches out of the token cache.

Documents are shuffled anew for every epoch, by seed and epoch alone, and packed whole into
sequences: one is cut only where it is longer than a sequence. So a position in the data is two
numbers, and a run that resumes there sees what it would have seen. It knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rosellm.roseinfer.errors import ConfigError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Sequences, each of one or more documents. All arrays are int64.

    Attributes:
        inputs: token ids [sequences, seq_len]; zeros behind the last document.
        positions: [sequences, seq_len]; count from zero in every document.
        where: [targets]; where something is to be learned, in the flattened inputs.
        targets: [targets]; the tokens that follow there.
    """

    inputs: Ints
    positions: Ints
    where: Ints
    targets: Ints


class Tokens:
    """A split of the cache, cut into pieces of at most ``seq_len + 1`` tokens.

    The pieces of a long document overlap by one token, which is the target of the one and an
    input of the other. Pieces with nothing to learn are left out.

    Attributes:
        starts, lengths: of each piece, in tokens.
        learned: targets in each piece.
    """

    def __init__(self, folder: Path, split: str, seq_len: int) -> None:
        # Views without numpy's memmap class, whose slicing is slow.
        self._ids = np.asarray(_map(folder / f"{split}.tokens.npy"))
        self._mask = np.asarray(_map(folder / f"{split}.mask.npy"))
        self.seq_len = seq_len
        bounds = np.load(folder / f"{split}.starts.npy")
        starts, lengths = _cut(bounds, seq_len)
        before = np.concatenate([[0], np.cumsum(self._mask, dtype=np.int64)])
        learned = before[starts + lengths] - before[np.minimum(starts + 1, starts + lengths)]
        kept = learned > 0
        self.starts, self.lengths, self.learned = starts[kept], lengths[kept], learned[kept]

    def batch(self, rows: Sequence[Ints]) -> Batch:
        """Assemble sequences, each given as the pieces that it holds."""
        shape = (len(rows), self.seq_len + 1)
        ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        learn = np.zeros(shape, np.uint8)
        counting = np.arange(self.seq_len + 1)
        for row, pieces in enumerate(rows):
            at = 0
            for start, length in zip(
                self.starts[pieces].tolist(), self.lengths[pieces].tolist(), strict=True
            ):
                end = at + length
                ids[row, at:end] = self._ids[start : start + length]
                positions[row, at:end] = counting[:length]
                # A document's first token follows nothing.
                learn[row, at + 1 : end] = self._mask[start + 1 : start + length]
                at = end
            positions[row, at:] = counting[: self.seq_len + 1 - at]
        where = np.flatnonzero(learn[:, 1:])
        return Batch(ids[:, :-1], positions[:, :-1], where, ids[:, 1:].reshape(-1)[where])


def _map(path: Path) -> npt.NDArray[Any]:
    try:
        if path.stat().st_size <= 128:  # the header alone: an empty file cannot be mapped
            return np.zeros(0, np.uint8)
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        return mapped
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete its folder") from None


def _cut(bounds: Ints, seq_len: int) -> tuple[Ints, Ints]:
    """Starts and lengths of the pieces of all documents."""
    sizes = np.diff(bounds)
    counts = np.maximum(-(-(sizes - 1) // seq_len), 1)
    first = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(first, counts)
    starts = np.repeat(bounds[:-1], counts) + index * seq_len
    lengths = np.minimum(np.repeat(bounds[1:], counts) - starts, seq_len + 1)
    return starts, lengths


def pack(lengths: Ints, capacity: int) -> Ints:
    """Where sequences begin when pieces are put into them in order, as many as fit.

    >>> pack(np.array([3, 4, 5, 2]), 8)
    array([0, 2])
    """
    ends = np.cumsum(lengths)
    firsts, at, base = [], 0, 0
    while at < len(lengths):
        firsts.append(at)
        at = int(np.searchsorted(ends, base + capacity, side="right"))
        base = int(ends[at - 1])
    return np.array(firsts, np.int64)


@dataclass
class Position:
    """How far the data has been read: sequences ``index`` and up of this epoch are next."""

    epoch: int = 0
    index: int = 0


class Stream:
    """The training data, epoch after epoch.

    Attributes:
        position: what comes next; plain numbers, saved in checkpoints.
    """

    def __init__(self, tokens: Tokens, seed: int, position: Position | None = None) -> None:
        self._tokens, self._seed = tokens, seed
        self.position = position or Position()
        self._shuffled = self._shuffle(self.position.epoch)

    def take(self, count: int) -> list[Ints]:
        """The next sequences, as the pieces that each holds."""
        taken: list[Ints] = []
        while len(taken) < count:
            if self.position.index == len(self._shuffled):
                self.position = Position(self.position.epoch + 1)
                self._shuffled = self._shuffle(self.position.epoch)
            taken.append(self._shuffled[self.position.index])
            self.position.index += 1
        return taken

    def state(self) -> dict[str, int]:
        return asdict(self.position)

    def _shuffle(self, epoch: int) -> list[Ints]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._tokens.lengths))
        return sequences(self._tokens, order)


def sequences(tokens: Tokens, order: Ints) -> list[Ints]:
    """All sequences of an epoch with the pieces in this order."""
    firsts = pack(tokens.lengths[order], tokens.seq_len + 1)
    return np.split(order, firsts[1:])


def in_order(tokens: Tokens, count: int) -> list[Ints]:
    """Sequences with the pieces as they stand in the files, evenly spaced, at most ``count``."""
    every = sequences(tokens, np.arange(len(tokens.lengths)))
    if len(every) <= count:
        return every
    return [every[index * len(every) // count] for index in range(count)]


def parts(rows: Sequence[Ints], size: int) -> Iterator[Sequence[Ints]]:
    """Rows, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
