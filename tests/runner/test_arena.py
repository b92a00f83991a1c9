"""What goes to the device and comes back: in one copy each, never over what is still needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.runner.arena import Arena
from rosellm.roseinfer.runner.fetch import Fetched
from rosellm.roseinfer.runner.model_runner import ModelRunner
from rosellm.roseinfer.step import LogitRow, StepPlan, Work
from tests.runner.decoding import CPU, FakeEvent, FlatAttention
from tests.tiny_models import build, write_llama

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.array([[1.5], [2.5]], np.float32),
    np.arange(12, dtype=np.int32).reshape(3, 4).T,
    np.zeros(0, np.int64),
    np.array([True, False]),
]


def same(tensor: Tensor, array: np.ndarray) -> bool:
    return torch.equal(tensor, torch.from_numpy(np.ascontiguousarray(array)))


def test_arrays_arrive_when_they_are_sent() -> None:
    arena = Arena(CPU, 4096, FakeEvent)
    arena.begin()
    arena._target.fill_(255)
    places = [arena.put(array) for array in ARRAYS]
    assert not same(places[0], ARRAYS[0])
    arena.send()
    assert all(same(place, array) for place, array in zip(places, ARRAYS, strict=True))


def test_the_same_puts_get_the_same_places() -> None:
    arena = Arena(CPU, 4096, FakeEvent)
    found = []
    for step in range(3):
        arena.begin()
        found.append([arena.put(array + (array.dtype != bool) * step) for array in ARRAYS])
        found[-1].append(arena.mark())
        arena.send()
    addresses = [[p.data_ptr() if isinstance(p, Tensor) else p for p in places] for places in found]
    assert addresses[0] == addresses[1] == addresses[2]
    assert same(found[0][0], ARRAYS[0] + 2)


def test_a_buffer_is_not_filled_while_its_copy_is_under_way() -> None:
    """Each step waits for the copy before the last one, and not for the last one."""
    logs: list[list[str]] = []

    def event() -> FakeEvent:
        logs.append([])
        return FakeEvent(logs[-1])

    arena = Arena(CPU, 4096, event)
    sources = []
    for step in range(6):
        before = [list(log) for log in logs]
        arena.begin()
        own = arena._turn
        assert logs[own] == [*before[own], "wait"]
        assert logs[1 - own] == before[1 - own]
        sources.append(arena._sources[own].data_ptr())
        arena.put(np.full(3, step))
        arena.send()
        assert logs[own][-1] == "record"
    assert sources[0] == sources[2] != sources[1]


def test_what_has_no_room_goes_apart() -> None:
    arena = Arena(CPU, 512, FakeEvent)
    arena.begin()
    large = np.arange(200)
    places = [arena.put(ARRAYS[0]), arena.put(large), arena.put(ARRAYS[1])]
    assert arena.mark() is None
    arena.send()
    arrays = [ARRAYS[0], large, ARRAYS[1]]
    assert all(same(place, array) for place, array in zip(places, arrays, strict=True))
    arena.begin()
    assert arena.mark() == 0


def test_results_come_back_in_one_copy() -> None:
    log: list[str] = []
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(5),
        torch.rand(2, 3),
        torch.rand(0, 4),
        torch.rand(4, 3).t(),
        torch.arange(3, dtype=torch.int32),
    ]
    fetched = Fetched(tensors, lambda: FakeEvent(log))
    assert log == ["record"]
    kept = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.zero_()  # the next step overwrites what it came from
    found = fetched.wait()
    assert log == ["record", "wait"]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, kept, strict=True))


def test_nothing_is_no_copy() -> None:
    assert Fetched([], FakeEvent).wait() == []


# -- no synchronisation -----------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Raises at every operation for which a host would have to wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in self.WAITING, f"{name} waits for the device"
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "counts what is true"
        if name == "index_put_":
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "counts what is true"
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors say that they are on one; none may be asked for what it holds."""

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("this waits for the device")

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", True)
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
            patch.setattr(Tensor, name, refused)
        with NoWaiting():
            yield


PLAIN = SamplingParams(seed=1, max_tokens=5, temperature=0.8)
MIXED = [
    SamplingParams(seed=1, max_tokens=5, temperature=0.0),
    PLAIN,
    SamplingParams(
        seed=2, max_tokens=5, temperature=0.7, frequency_penalty=0.5, repetition_penalty=1.2
    ),
    SamplingParams(
        seed=3, max_tokens=5, logit_bias=((4, 1.5),), min_tokens=3, stop_token_ids=(2, 9)
    ),
]


def decode_plan(params: list[SamplingParams]) -> StepPlan:
    return StepPlan(
        tuple(
            Work(
                i, 2, (7,), ((i,),),
                logits=(LogitRow(0, each, 0, 1, history=(3, 4, 7), prompt_len=2),),
            )
            for i, each in enumerate(params)
        )
    )  # fmt: skip


def test_a_decode_step_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the plan to the copy of its results, whatever its rows want but a filter, whose
    specification in plain torch looks at how many rows it decides."""
    core = build(write_llama(tmp_path / "llama"), kernels="reference", block_size=4)
    old = core.runner
    assert isinstance(old, ModelRunner)
    runner = ModelRunner(
        old.model, old._ops, old._storage, FlatAttention(4), CPU, 64,
        uploads=Arena(CPU, 1 << 20, FakeEvent),
    )  # fmt: skip
    runner._event = FakeEvent  # type: ignore[assignment]
    plan = decode_plan(MIXED)
    expected = runner.execute(plan).result()
    arena_send = Arena.send
    sent: list[int] = []
    monkeypatch.setattr(Arena, "send", lambda self: (sent.append(1), arena_send(self))[1])
    monkeypatch.setattr(Arena, "late", lambda *_: pytest.fail("a copy of its own"))
    with as_on_a_card(monkeypatch):
        pinned = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: pinned(*a, **k))
        handle = runner.execute(plan)
    assert handle.result() == expected
    assert sent == [1]


def test_waiting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(3)
    for waits in (
        lambda: numbers[0].item(),
        lambda: numbers.tolist(),
        lambda: torch.nonzero(numbers),
        lambda: numbers[numbers > 1],
        lambda: bool(numbers[0]),
    ):
        with pytest.raises(AssertionError), as_on_a_card(monkeypatch):
            waits()
