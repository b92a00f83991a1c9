"""Who may run beside whom."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.turns import taken


class Room:
    """Threads in the place of processes: a lock belongs to whoever has opened the file."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: folder / name for name in ("room", "turnstile")}
        for file in self.files.values():
            file.touch()
        self.inside: list[str] = []
        self.leave = {name: threading.Event() for name in "abc"}
        self.threads: list[threading.Thread] = []

    def send(self, name: str, *, alone: bool) -> None:
        def stay() -> None:
            with taken(alone=alone, **self.files):
                self.inside.append(name)
                self.leave[name].wait(10)
                self.inside.remove(name)

        self.threads.append(threading.Thread(target=stay))
        self.threads[-1].start()

    def holds(self, *names: str) -> bool:
        """Whether they are inside, and stay so for a while."""
        for _ in range(500):
            if sorted(self.inside) == sorted(names):
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.05)
        return sorted(self.inside) == sorted(names)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_others_share_and_one_that_is_alone_waits_and_makes_wait(room: Room) -> None:
    room.send("a", alone=False)
    assert room.holds("a")
    room.send("b", alone=True)
    assert room.holds("a")
    room.send("c", alone=False)
    assert room.holds("a"), "c is behind b, which waits for a"
    room.leave["a"].set()
    assert room.holds("b")
    room.leave["b"].set()
    assert room.holds("c")
    room.leave["c"].set()
    assert room.holds()
    for thread in room.threads:
        thread.join()


def test_those_who_share_are_there_together(room: Room) -> None:
    for name in "abc":
        room.send(name, alone=False)
    assert room.holds(*"abc")
    for event in room.leave.values():
        event.set()
    assert room.holds()
