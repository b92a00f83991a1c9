"""The largest step that there can be, run once to see what memory it takes.

As many prompt tokens as a step's budget allows, by as many sequences as may run, each of which
samples a token. What it says and what it writes is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner import memory
from rosellm.roseinfer.runner.choices import Choices
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import LogitRow, StepPlan, Work

_SAMPLED = SamplingParams(seed=0, max_tokens=1, temperature=1.0, top_k=50, top_p=0.9)


class Meter(Protocol):
    """What measures a device's memory."""

    def free(self) -> int:
        """Bytes that can be allocated now."""

    def peak(self, run: Callable[[], object]) -> int:
        """Most bytes that were taken while ``run`` ran, on top of those before."""


class CudaMeter:
    """See ``Meter``. What other programs take and give back meanwhile is not counted as ours."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def free(self) -> int:
        torch.cuda.empty_cache()
        return memory.available(self._device)

    def peak(self, run: Callable[[], object]) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_reserved(self._device)
        run()
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device) - before


def step_bytes(choices: Choices, max_model_len: int, meter: Meter) -> int:
    """What the largest step takes on top of weights and tables, the choices' model filled.

    Raises:
        ConfigError: there is not enough memory for it.
    """
    spec, size = choices.spec, choices.config.cache.block_size
    groups = spec.kv_groups
    storage = KVStorage(groups, [1] * len(groups), size, choices.kv_dtype, choices.device)
    runner = ModelRunner(
        choices.model,
        choices.ops,
        storage,
        choices.backend,
        choices.device,
        max_model_len,
        spec.pooling,
    )
    plan = largest_plan(choices, max_model_len)
    try:
        return meter.peak(lambda: runner.execute(plan).result())
    except Exception as error:
        if not memory.ran_out(error):
            raise
        raise ConfigError(
            f"a step of {choices.step_tokens} tokens and {len(plan.work)} sequences does not fit "
            f"into the memory of {choices.device} beside the weights: make room, or use a smaller "
            "--max-num-batched-tokens or --max-num-seqs"
        ) from None


def largest_plan(choices: Choices, max_model_len: int) -> StepPlan:
    """Sequences over one and the same block: what they read means nothing."""
    tokens = choices.step_tokens
    most = min(choices.config.scheduler.max_num_seqs, tokens)
    lengths: list[int] = []
    while tokens and len(lengths) < most:
        others = most - len(lengths) - 1
        lengths.append(min(max_model_len, max(tokens - others, 1)))
        tokens -= lengths[-1]
    return StepPlan(tuple(_work(choices, number, length) for number, length in enumerate(lengths)))


def _work(choices: Choices, number: int, length: int) -> Work:
    spec = choices.spec
    table = (0,) * -(-length // choices.config.cache.block_size)
    row = LogitRow(length - 1, _SAMPLED, choice=0, position=0)
    return Work(
        number,
        0,
        (0,) * length,
        (table,) * len(spec.kv_groups),
        logits=(row,) if spec.generates else (),
        pool=not spec.generates,
    )
