"""What goes to the device and comes back: in one copy each, never over what is still needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rosellm.roseinfer.runner.arena import Arena
from rosellm.roseinfer.runner.fetch import Fetched
from tests.runner.decoding import CPU, FakeEvent

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
