"""Between submitting a step and its one copy back nothing asks the device for a value.

The device is torch's "meta". Its tensors have shapes and no values, so whatever wants a value, or a
shape that depends on values, raises; copies to the host are counted instead. The model is a
table: which of its kernels wait is not what is looked at here. Neither are filters such as top-k
and the likeliest tokens, for which plain torch has to wait and kernels do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rosellm.roseinfer.kernels.logits import Logits
from rosellm.roseinfer.kernels.table import reference_ops
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import UNKNOWN, LogitRow, Scoring, StepPlan, Work

CARD = torch.device("meta")
VOCABULARY, WIDTH = 40, 8


class Table:
    """As little of a model as a runner needs."""

    spec = SimpleNamespace(num_layers=0, vocab_size=VOCABULARY, rope_of=lambda layer: None)

    def __init__(self) -> None:
        self._rows = torch.zeros(VOCABULARY, WIDTH, device=CARD)

    def __call__(self, ids: Tensor, _step: Any) -> Tensor:
        return self._rows[ids]

    def logits(self, hidden: Tensor) -> Logits:
        return Logits(hidden @ self._rows.T)


def told(raw: Tensor, tokens: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """In the place of ``Ops.logprobs_of``."""
    values, ids = raw.topk(width)
    return raw.gather(1, tokens[:, None])[:, 0], ids, values


class Places:
    """Uploads without contents: only where they would be is there."""

    def begin(self) -> None:
        pass

    def put(self, array: np.ndarray) -> Tensor:
        kind = {"int64": torch.int64, "float32": torch.float32, "int32": torch.int32}
        return torch.zeros(array.shape, dtype=kind[str(array.dtype)], device=CARD)

    def send(self) -> None:
        pass

    def late(self, tensor: Tensor) -> Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=CARD)

    def mark(self) -> int | None:
        return None


class Event:
    waits = 0

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        Event.waits += 1


class Copies(TorchDispatchMode):
    """Counts copies from the device to the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            target, source, *_ = args
            if target.device.type == "cpu" and source.device == CARD:
                Copies.count += 1
                return target
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRunner]:
    monkeypatch.setattr(Copies, "count", 0)
    monkeypatch.setattr(Event, "waits", 0)
    storage: Any = SimpleNamespace(groups=(), null_blocks=())
    with Copies():
        ops = replace(reference_ops("tested"), logprobs_of=told)
        made: Any = (Table(), ops, storage, None, CARD, 64)
        runner = ModelRunner(*made, uploads=Places())
        monkeypatch.setattr(runner, "_event", Event)
        yield runner


def plan(params: SamplingParams, position: int, scored: bool = False) -> StepPlan:
    """A step with a stream whose token is awaited, or with the prompt before it, and another."""
    later = position > 0
    history = (1, 2, 3, *[5] * (position - 1), UNKNOWN)[: 3 + position]
    row = LogitRow(
        offset=0 if later else 2,
        params=params,
        choice=0,
        position=position,
        history=history if params.needs_history else (),
        prompt_len=3,
    )
    stream = Work(
        sequence=1,
        start=2 + position if later else 0,
        tokens=(UNKNOWN,) if later else (1, 2, 3),
        tables=(),
        logits=(row,),
        awaits=0 if later else None,
    )
    chunk = Work(2, 5 * position, (4, 4, 4, 4, 4), ())
    if scored:
        chunk = Work(2, 5 * position, (4, 4, 4, 4, 4), (), scoring=Scoring(0, (4, 4, 4), 2))
    return StepPlan((stream, chunk))


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.7},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "logprobs": {"logprobs": 3},
    "bias": {"logit_bias": ((3, 1.0),), "min_tokens": 4, "stop_token_ids": (7, 8)},
}


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_two_steps_are_submitted_without_waiting(
    runner: ModelRunner, case: str, scored: bool
) -> None:
    params = SamplingParams(seed=1, max_tokens=8, **CASES[case])
    runner.execute(plan(params, 0, scored))
    assert (Copies.count, Event.waits) == (1, 0)
    second = runner.execute(plan(params, 1, scored))
    assert (Copies.count, Event.waits) == (2, 0), "one copy a step"
    second.fetched.wait()
    assert (Copies.count, Event.waits) == (2, 1)


def test_a_mask_is_no_reason_to_wait_for_the_device(runner: ModelRunner) -> None:
    bits = SimpleNamespace(result=lambda: np.full((1, 2), -1, np.int32))
    params = SamplingParams(seed=1, max_tokens=8)
    runner.execute(plan(params, 0), bits)  # type: ignore[arg-type]
    assert (Copies.count, Event.waits) == (1, 0)


WAITING: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum().item(),
    lambda x: x.tolist(),
    lambda x: bool((x > 0).all()),
    lambda x: x[x > 0],
    lambda x: x.nonzero(),
    lambda x: torch.bincount(x.view(-1).long()),
    lambda x: x.unique(),
    lambda x: x.cpu(),
    lambda x: torch.equal(x, x),
]


@pytest.mark.parametrize("index", range(len(WAITING)))
def test_waiting_would_be_noticed(runner: ModelRunner, index: int) -> None:
    """Each of these in the sampler makes the tests above fail."""
    with pytest.raises(RuntimeError):
        WAITING[index](torch.zeros(3, 4, device=CARD))
