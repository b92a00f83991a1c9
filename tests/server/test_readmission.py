"""In which order requests come to a new engine, and how one that kills engines is found.

Engines are simulated: each step makes a token of every request that an engine has, and the last few
tokens are still on their way when it dies.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rosellm.roseinfer.server.readmission import LONGEST_TRIAL, LOST, Readmission

Kills = Callable[[int, int, int], bool]
"""Whether an engine dies over a request's token: its id, the token's position, and how many tokens
this engine had made of it before."""


class World:
    """Requests of some length each, and engines that die over some of them."""

    def __init__(self, kills: Kills = lambda *_: False, on_their_way: int = 0) -> None:
        self.readmission = Readmission(self._send, lambda id: self.told[id])
        self.told: dict[int, int] = {}
        self.sent: list[int] = []
        self.convicted: list[int] = []
        self.counted = self.deaths = 0
        self._kills = kills
        self._on_their_way = on_their_way
        self._lengths: dict[int, int] = {}
        self._made: dict[int, int] = {}
        self._had: dict[int, int] = {}

    @property
    def open(self) -> list[int]:
        return list(self._lengths)

    @property
    def inside(self) -> set[int]:
        return set(self._made)

    def add(self, id: int, length: int = 100) -> None:
        self._lengths[id], self.told[id] = length, 0
        self.readmission.admit(id)

    def _send(self, id: int) -> None:
        self.sent.append(id)
        self._made[id] = self._had[id] = self.told[id]

    def die(self) -> None:
        self._made.clear()
        self.sent.clear()
        self.deaths += 1
        finding = self.readmission.lost()
        self.counted += 1 - finding.explained
        if finding.fault is not None:
            self.convicted.append(finding.fault)
            del self._lengths[finding.fault]

    def restart(self) -> None:
        self.readmission.restart()

    def step(self) -> None:
        for id in list(self._made):
            if self._kills(id, self._made[id], self._made[id] - self._had[id]):
                self.die()
                self.restart()
                return
        for id in list(self._made):
            self._made[id] += 1
            self.told[id] = max(self.told[id], self._made[id] - self._on_their_way)
            if self._made[id] == self._lengths[id]:
                self.told[id] = self._lengths.pop(id)
                del self._made[id]
                self.readmission.gone([id])
        self.readmission.heard()

    def run(self, steps: int = 20_000) -> None:
        for _ in range(steps):
            if not self._lengths:
                return
            self.step()
        raise AssertionError(f"these have not ended: {self.open}")


def first_step(guilty: int, position: int, before: int) -> bool:
    return guilty == 3 and position >= 20


def from_a_token_on(guilty: int, position: int, before: int) -> bool:
    return guilty == 3 and position == 25


def a_while_after(tokens: int) -> Kills:
    return lambda guilty, position, before: guilty == 3 and before == tokens


# -- one that kills -------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [1, 2, 3, 10, 100])
@pytest.mark.parametrize(
    ("kills", "on_their_way"),
    [
        (first_step, 0),
        (from_a_token_on, 0),
        (from_a_token_on, 1),
        (from_a_token_on, 3),
        (from_a_token_on, LOST - 1),
        (a_while_after(1), 0),
        (a_while_after(5), 2),
        (a_while_after(40), 0),
        (a_while_after(80), 3),
    ],
)
def test_one_that_kills_is_found_within_four_deaths_and_the_others_complete(
    others: int, kills: Kills, on_their_way: int
) -> None:
    world = World(kills, on_their_way)
    for id in range(others + 1 + 3):
        if id == 3 or len(world.open) < others + (id > 3):
            world.add(id, length=500 + id % 7)
    world.run()
    assert world.convicted == [3]
    assert world.deaths <= 4
    assert world.counted <= 1, "those before the last one are explained"


@pytest.mark.parametrize("tokens", [0, 2, 30])
def test_alone_it_is_found_too_and_nothing_is_paid_back(tokens: int) -> None:
    world = World(a_while_after(tokens))
    world.add(3)
    world.run()
    assert (world.convicted, world.deaths, world.counted) == ([3], 3, 3)


def test_two_that_kill_are_found_one_after_the_other() -> None:
    world = World(lambda id, position, before: id in (3, 40) and before == 5)
    for id in range(60):
        world.add(id)
    world.run()
    assert sorted(world.convicted) == [3, 40]
    assert world.deaths <= 8
    assert world.counted <= 2


def test_each_that_kills_and_comes_later_is_found() -> None:
    world = World(lambda id, position, before: id % 10 == 3 and before == 5)
    for id in range(60):
        world.add(id, length=400)
        for _ in range(20):
            world.step()
    world.run()
    assert sorted(world.convicted) == [3, 13, 23, 33, 43, 53]


# -- engines that die by chance -------------------------------------------------------------------


def test_three_deaths_in_a_row_at_any_time_are_hardly_ever_taken_for_a_requests_fault() -> None:
    convicted = 0
    for seed in range(60):
        chance = random.Random(seed)
        world = World()
        for id in range(50):
            world.add(id, length=chance.randint(20, 200))
        for _ in range(3):
            for _ in range(chance.randint(1, 100)):
                world.step()
            world.die()
            world.restart()
        world.run()
        convicted += len(world.convicted)
    assert convicted <= 3


def test_a_death_that_fits_no_earlier_one_is_nobodys_fault() -> None:
    world = World()
    world.add(1, length=1000)
    for steps in (100, 200, 150, 60):
        for _ in range(steps):
            world.step()
        world.die()
        world.restart()
    world.run()
    assert (world.convicted, world.counted) == ([], 4)


def test_an_engine_that_died_once_puts_nobody_on_trial() -> None:
    world = World()
    for id in range(5):
        world.add(id)
    world.step()
    world.die()
    world.restart()
    for count in range(1, 6):
        assert world.sent == list(range(count)), "each when the one before has had news"
        world.step()
    world.add(7)
    assert world.sent[-1] == 7, "nobody new has to wait"


def test_who_was_in_one_of_two_engines_is_no_suspect() -> None:
    world = World(a_while_after(30))
    world.add(1, length=30)
    world.step()
    world.die()
    world.restart()
    while world.open:
        world.step()
    world.add(2)
    world.step()
    world.die()
    world.restart()
    world.add(5)
    assert world.inside == {2, 5}


# -- trials ---------------------------------------------------------------------------------------


def on_trial() -> World:
    """Nine suspects, three on trial; another one has come meanwhile."""
    world = World()
    for id in range(9):
        world.add(id, length=1000)
    for _ in range(2):
        for _ in range(20):
            world.step()
        world.die()
        world.restart()
    assert world.inside == {6, 7, 8}, "those with the least progress are the first ones"
    world.add(20)
    assert 20 not in world.inside
    return world


def test_nobody_else_is_in_the_engine_until_the_first_ones_have_passed() -> None:
    world = on_trial()
    steps = 0
    while world.inside == {6, 7, 8}:
        world.step()
        steps += 1
    assert steps == 20 - 6 + LOST, "what the one that had the most had had, and what gets lost"
    assert world.inside == {3, 4, 5, 6, 7, 8}


def test_when_all_have_passed_those_who_waited_are_sent() -> None:
    world = on_trial()
    while 20 not in world.inside:
        world.step()
    assert world.inside == {*range(9), 20}
    world.die()
    world.restart()
    assert len(world.inside) == 1, "they are as innocent as ever"
    for _ in range(12):
        world.step()
    assert world.inside == {*range(9), 20}


def test_of_those_who_are_on_trial_as_it_dies_each_is_alone_next() -> None:
    world = on_trial()
    world.die()
    world.restart()
    for suspect in (6, 7, 8):
        assert suspect in world.inside
        assert len(world.inside) == suspect - 5
        before = world.inside
        while world.inside == before:
            world.step()
    assert world.inside == {3, 4, 5, 6, 7, 8}, "then the other suspects"


def test_who_leaves_is_waited_for_no_more() -> None:
    world = on_trial()
    world.readmission.gone([6, 7, 8, 4])
    assert world.inside == {6, 7, 8, 3, 5}


def test_a_long_past_does_not_make_a_long_trial() -> None:
    world = World()
    for id in range(2):
        world.add(id, length=50_000)
    for _ in range(2):
        for _ in range(5_000):
            world.step()
        world.die()
        world.restart()
    for _ in range(LONGEST_TRIAL):
        assert len(world.inside) == 2 or world.inside == {1}
        world.step()
    assert world.inside == {0, 1}


def test_who_comes_while_there_is_no_engine_is_sent_to_the_next_one() -> None:
    world = World()
    world.add(1)
    world.die()
    world.add(2)
    assert world.sent == []
    world.restart()
    world.step()
    assert world.sent == [1, 2]
