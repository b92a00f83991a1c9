"""The host's numbers for a step, on their way to the device in one copy.

``put`` writes an array into a pinned buffer and returns the place on the device where ``send`` will
bring it. The device has one buffer: copies and kernels run there in the order in which they were
submitted, so a step's numbers stay until its kernels have read them. The host has two: a step is
laid out while the copy of the one before may still be running. Equal sequences of puts get equal
places, which is what lets a CUDA graph read its inputs there.

Knows nothing of what the arrays mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 256
"""Of each array's first byte: as allocators do it, and more than any kernel asks for."""

_BUFFERS = 2


class Uploads(Protocol):
    """What a runner lays its steps out with."""

    def begin(self) -> None:
        """A new step: nothing is put yet."""

    def put(self, array: np.ndarray) -> Tensor:
        """See ``Upload``: it arrives with ``send``."""

    def send(self) -> None:
        """Bring what was put to the device, ahead of what is submitted after."""

    def late(self, tensor: Tensor) -> Tensor:
        """A host's tensor that became known after ``send``, in a copy of its own."""

    def mark(self) -> int | None:
        """How much was put; None if it did not all have its place, so that it may move."""


class Event(Protocol):
    """A point in the device's work."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Direct:
    """For a device that shares the host's memory: an array is a tensor already."""

    def begin(self) -> None:
        pass

    def put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    def send(self) -> None:
        pass

    def late(self, tensor: Tensor) -> Tensor:
        return tensor

    def mark(self) -> int | None:
        return None


class Arena:
    """See ``Uploads``.

    Args:
        num_bytes: what one step may put; what goes beyond it is copied apart.
        event: makes events of the device.
    """

    def __init__(
        self,
        device: torch.device,
        num_bytes: int,
        event: Callable[[], Event] = torch.cuda.Event,
    ) -> None:
        pinned = device.type == "cuda"
        self._target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._sources = [
            torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(_BUFFERS)
        ]
        self._arrived = [event() for _ in range(_BUFFERS)]
        self._turn = 0
        self._used = 0
        self._full = False

    def begin(self) -> None:
        """Wait, if need be, until the copy before the last one has left its buffer."""
        self._turn = (self._turn + 1) % _BUFFERS
        self._arrived[self._turn].synchronize()
        self._used, self._full = 0, False

    def put(self, array: np.ndarray) -> Tensor:
        source = torch.from_numpy(np.ascontiguousarray(array))
        end = self._used + source.nbytes
        if end > self._target.nbytes:
            self._full = True
            return self.late(source)
        place = slice(self._used, end)
        _part(self._sources[self._turn], place, source).copy_(source)
        self._used = -(-end // ALIGNMENT) * ALIGNMENT
        return _part(self._target, place, source)

    def send(self) -> None:
        source = self._sources[self._turn][: self._used]
        self._target[: self._used].copy_(source, non_blocking=True)
        self._arrived[self._turn].record()

    def late(self, tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if self._target.is_cuda else tensor
        return pinned.to(self._target.device, non_blocking=True)

    def mark(self) -> int | None:
        return None if self._full else self._used


def _part(buffer: Tensor, place: slice, like: Tensor) -> Tensor:
    return buffer[place].view(like.dtype).view(like.shape)
