"""Whatever clients do and however steps interleave, scheduler and cache keep their promises."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rosellm.roseinfer.cache import manager
from rosellm.roseinfer.messages import Add
from rosellm.roseinfer.request import SamplingParams
from rosellm.roseinfer.scheduling import chunks
from tests.examples import examples
from tests.scheduling.fake import END, Asked, Harness, alone
from tests.scheduling.readings import letters as letters_of

LETTERS = st.one_of([st.lists(st.integers(0, 1), min_size=1, max_size=most) for most in (3, 6, 24)])
WHICH = st.integers(0, 30)
PARAMS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2),
        "max_tokens": st.one_of(st.integers(0, 4), st.integers(5, 20)),
        "prompt_logprobs": st.sampled_from([None, None, None, 0, 2]),
        "min_tokens": st.integers(0, 4),
        "stop_token_ids": st.sampled_from([(), (), (END,), (1, END)]),
        "presence_penalty": st.sampled_from([0.0, 1.0]),
    }
)
FIELDS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "priority": st.integers(-2, 2),
        "tenant": st.sampled_from(["", "", "a", "b"]),
        "cache_salt": st.sampled_from(["", "", "a"]),
        "timeout": st.sampled_from([None, None, None, None, 0.0, 0.2, 20.0]),
    }
)
EDITS = st.lists(
    st.tuples(st.integers(0, 20), st.lists(st.integers(0, END), max_size=3)), max_size=3
)
REQUESTS = st.tuples(LETTERS, st.sampled_from([1, 1, 2, 3]), PARAMS, FIELDS)
MOST_IN_FLIGHT = 2


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a ``Harness``, which compares every row and every cache slot with its own books."""

    @initialize(
        block_size=st.sampled_from([1, 1, 2, 3, 4]),
        num_blocks=st.integers(4, 16),
        windows=st.sampled_from([(None,), (None, None), (None, 1), (3,), (5, None), (2, 7)]),
        max_num_seqs=st.integers(1, 6),
        budget=st.sampled_from([1, 2, 3, 4, 8, 16]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        hashes_per_call=st.sampled_from([1, 2, 1024]),
        depths=st.lists(st.integers(1, MOST_IN_FLIGHT), min_size=1, max_size=6),
        lookup=st.booleans(),
        longest_draft=st.sampled_from([0, 1, 3, 8]),
        itl_target=st.sampled_from([None, None, 0.005, 0.03]),
        least_chunk=st.sampled_from([1, 2, 16]),
        remeasure=st.sampled_from([1, 3, 32]),
        each=st.sampled_from([0.0, 0.001, 0.01]),
    )
    def start(
        self,
        block_size: int,
        num_blocks: int,
        windows: tuple[int | None, ...],
        max_num_seqs: int,
        budget: int,
        prefix_cache: bool,
        hashes_per_call: int,
        depths: list[int],
        lookup: bool,
        longest_draft: int,
        itl_target: float | None,
        least_chunk: int,
        remeasure: int,
        each: float,
    ) -> None:
        self._depths = depths
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(manager, "HASHES_PER_CALL", hashes_per_call)
        self._patch.setattr(chunks, "LEAST_CHUNK", least_chunk)
        self._patch.setattr(chunks, "REMEASURE", remeasure)
        self.harness = Harness(
            block_size=block_size,
            num_blocks=num_blocks,
            windows=windows,
            max_num_seqs=max_num_seqs,
            budget=budget,
            prefix_cache=prefix_cache,
            lookup=lookup,
            longest_draft=longest_draft,
            itl_target=itl_target,
            cost=lambda plan: each * (1 + plan.num_tokens),
        )

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        try:
            self.harness.run(self._depths)
            self.harness.check_drained()
        finally:
            self._patch.undo()

    # -- clients --

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=3))
    def add(self, requests: list[tuple[list[int], int, dict[str, Any], dict[str, Any]]]) -> None:
        for prompt, n, params, fields in requests:
            self.harness.add(prompt[: self._longest_prompt], n=n, **params, **fields)

    @rule(prompt=LETTERS, n=st.sampled_from([1, 1, 2]), params=PARAMS, fields=FIELDS, edits=EDITS)
    def add_predicted(
        self,
        prompt: list[int],
        n: int,
        params: dict[str, Any],
        fields: dict[str, Any],
        edits: list[tuple[int, list[int]]],
    ) -> None:
        """The prediction is the first choice's answer, changed here and there."""
        add = Add(0, prompt[: self._longest_prompt], SamplingParams(**params), n=n)
        prediction, _ = (
            alone(add, 0, self.harness.max_model_len) if params["max_tokens"] else ([], 0)
        )
        for at, letters in edits:
            prediction[at : at + len(letters)] = letters
        self.harness.add(add.prompt, n=n, prediction=prediction, **params, **fields)

    @rule(prompt=LETTERS, fields=FIELDS)
    def add_pooled(self, prompt: list[int], fields: dict[str, Any]) -> None:
        self.harness.add(prompt[: self._longest_prompt], want="pooled", **fields)

    @precondition(lambda self: self.harness.asked)
    @rule(which=WHICH, tail=LETTERS, params=PARAMS)
    def add_next_turn(self, which: int, tail: list[int], params: dict[str, Any]) -> None:
        """A prompt that begins as an earlier one and its answer did."""
        asked = self._pick(which)
        prompt = [*asked.add.prompt, *asked.answers[0], *tail][: self._longest_prompt]
        salt: dict[str, Any] = {"tenant": asked.add.tenant, "cache_salt": asked.add.cache_salt}
        self.harness.add(prompt, **params, **salt)

    @precondition(lambda self: self.harness.asked)
    @rule(which=WHICH, lengths=st.lists(st.integers(0, 12), min_size=3, max_size=3))
    def add_resumed(self, which: int, lengths: list[int]) -> None:
        """An earlier request once more, of which part of the answer is known."""
        add = self._pick(which).add
        generated = []
        for choice, length in zip(range(add.n), lengths, strict=False):
            answer, _ = alone(add, choice, self.harness.max_model_len)
            generated.append(answer[: min(length, len(answer) - 1)])
        params = {name: getattr(add.params, name) for name in add.params.__struct_fields__}
        self.harness.add(add.prompt, n=add.n, generated=generated, **params)

    @rule(which=WHICH)
    def abort(self, which: int) -> None:
        """Of a request that runs, waits, has ended or, with 0, was never there."""
        self.harness.abort(which % (len(self.harness.asked) + 1))

    @rule(seconds=st.sampled_from([0.1, 15.0]))
    def wait(self, seconds: float) -> None:
        self.harness.now += seconds

    @rule()
    def flush(self) -> None:
        self.harness.cache.flush()

    # -- the engine --

    @precondition(lambda self: not self.harness.in_flight)
    @rule()
    def step(self) -> None:
        for _ in range(1 + self.harness.max_model_len):
            plan = self.harness.submit()
            self.harness.complete()
            if plan.work or not self.harness.scheduler.has_work:
                return  # a plan is empty only while a long prompt is being hashed
        raise AssertionError("there is work, and none of it is planned")

    @precondition(lambda self: not self.harness.in_flight)
    @rule(executed=st.booleans())
    def step_after_a_discarded_one(self, executed: bool) -> None:
        self.harness.submit()
        if executed:
            self.harness.execute()
        self.harness.discard()
        self.harness.check()
        self.harness.step()

    @rule(depths=st.lists(st.integers(1, MOST_IN_FLIGHT), max_size=8))
    def run_on(self, depths: list[int]) -> None:
        """Some steps with one or two plans in flight."""
        for depth in depths:
            if len(self.harness.in_flight) < MOST_IN_FLIGHT:
                self.harness.submit()
            while len(self.harness.in_flight) >= depth:
                self.harness.complete()
            self.harness.check()

    @precondition(lambda self: len(self.harness.in_flight) < MOST_IN_FLIGHT)
    @rule(execute=st.booleans())
    def submit(self, execute: bool) -> None:
        self.harness.submit()
        if execute:
            self.harness.execute()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def execute_again(self) -> None:
        self.harness.execute_again()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def complete(self) -> None:
        self.harness.complete()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def discard(self) -> None:
        self.harness.discard()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "harness"):
            self.harness.check()

    @property
    def _longest_prompt(self) -> int:
        return self.harness.max_model_len - 1

    def _pick(self, which: int) -> Asked:
        return list(self.harness.asked.values())[which % len(self.harness.asked)]


def hold(max_examples: int, steps: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(max_examples=max_examples, stateful_step_count=steps, deadline=None),
    )


def test_promises_hold() -> None:
    hold(max_examples=examples(150), steps=50)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(10))
def test_promises_hold_for_longer(part: int) -> None:
    """1500 examples, judged by tenths, each of which may be run alone; every one draws its own."""
    hold(max_examples=150, steps=80)


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, 40),
        st.sampled_from([1, 1, 3]),
        st.integers(1, 12),
        st.integers(-1, 1),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=examples(40), deadline=None)
@given(
    arrivals=ARRIVALS,
    victim=st.sampled_from("abcz"),
    length=st.integers(1, 55),
    priority=st.integers(0, 3),
    before=st.integers(0, 30),
    num_blocks=st.sampled_from([16, 24, 64]),
    itl_target=st.sampled_from([None, 0.005, 0.05]),
)
def test_no_request_starves(
    arrivals: list[tuple[str, int, int, int, int]],
    victim: str,
    length: int,
    priority: int,
    before: int,
    num_blocks: int,
    itl_target: float | None,
) -> None:
    """Others ask again and again, as much as ever finds room, for as long as it takes."""
    harness = Harness(
        block_size=4,
        num_blocks=num_blocks,
        max_model_len=60,
        max_num_seqs=4,
        budget=16,
        ageing=1.0,
        itl_target=itl_target,
        cost=lambda plan: 0.01 + 0.001 * plan.num_tokens,
    )
    others = cycle(arrivals)

    def arrive() -> None:
        while harness.scheduler.num_waiting < 12:
            tenant, size, n, max_tokens, urgency = next(others)
            prompt = letters_of(size, len(harness.asked))
            harness.add(prompt, tenant=tenant, n=n, max_tokens=max_tokens, priority=urgency)

    for _ in range(before):
        arrive()
        harness.step()
    asked = harness.asked[
        harness.add(letters_of(length, 7), tenant=victim, priority=priority, max_tokens=4)
    ]
    for _ in range(2500):
        arrive()
        harness.step()
        if asked.over:
            return
    raise AssertionError("it starves")
