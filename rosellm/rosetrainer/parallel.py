"""The processes of a run: one, or several that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from rosellm.roseinfer.errors import ConfigError

PATIENCE = timedelta(hours=2)  # while the first process prepares the data


@dataclass(frozen=True)
class Group:
    """This process among the others, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Added up over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the processes that torchrun's environment speaks of: NCCL on GPUs, gloo on CPUs."""
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    here = _device(device, local)
    if size == 1:
        yield Group(0, 1, here)
        return
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(dist.get_rank(), size, here)
    finally:
        dist.destroy_process_group()


def _device(wanted: str, local: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch sees no GPU here")
    return torch.device("cuda", local)
