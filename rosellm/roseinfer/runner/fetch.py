"""A step's results on their way from the device to the host, in one copy.

The copy is submitted behind the kernels that compute the results. So it can be waited for by
itself, while the device is at the next step already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rosellm.roseinfer.runner.arena import Event


class Fetched:
    """Tensors that will be on the host.

    Args:
        tensors: on one device, of any types and shapes.
        event: makes events of the device; None where it shares the host's memory.
    """

    def __init__(self, tensors: Sequence[Tensor], event: Callable[[], Event] | None) -> None:
        self._tensors = list(tensors)
        self._arrived = None if event is None or not tensors else event()
        if self._arrived is not None:
            self._tensors = _copy(self._tensors)
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        """The same tensors, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Submit one copy of all; the largest types first, so that each begins where it may."""
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].itemsize)
    sizes = [tensors[i].nbytes for i in order]
    packed = torch.cat([tensors[i].contiguous().view(-1).view(torch.uint8) for i in order])
    host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=packed.is_cuda)
    host.copy_(packed, non_blocking=True)
    parts = list(tensors)
    for i, part in zip(order, host.split(sizes), strict=True):
        parts[i] = part.view(tensors[i].dtype).view(tensors[i].shape)
    return parts
