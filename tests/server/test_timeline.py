"""Where a request's time goes: every part is where it belongs, and together they are the whole."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rosellm.roseinfer.messages import Add, Output, Outputs, Stats, Timings
from rosellm.roseinfer.scheduling.phases import Phases
from rosellm.roseinfer.server.delta import Delta
from rosellm.roseinfer.server.timeline import Timeline
from tests.scheduling.fake import Harness
from tests.server.fakes import EOS, FakeEngine, Server, events, says, serving

PARTS = [
    "receive_s",
    "tokenise_s",
    "grammar_s",
    "queue_s",
    "prefill_s",
    "decode_s",
    "preempted_s",
    "engine_s",
    "respond_s",
    "client_s",
]


def check_sum(timings: dict[str, Any]) -> None:
    assert set(timings) - set(PARTS) == {
        "total_s",
        "preemptions",
        "prompt_tokens",
        "cached_tokens",
        "computed_tokens",
        "completion_tokens",
    }
    assert sum(timings[part] for part in PARTS) == pytest.approx(timings["total_s"], rel=0.01)
    assert all(timings[part] >= 0 for part in PARTS)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


# -- the engine's part -------------------------------------------------------------------------


def test_a_sequence_is_in_one_phase_at_a_time() -> None:
    phases = Phases("grammar", 0.0)
    phases.enter("queue", 1.0)
    phases.admitted(3.0)
    assert phases.took_tokens(6.0)
    assert not phases.took_tokens(7.0)
    assert phases.timings(8.0) == Timings(1, 2, 3, 2)
    phases.preempted(10.0)
    phases.admitted(11.0)
    assert phases.took_tokens(15.0)
    assert phases.timings(16.0) == Timings(1, 2, 3, 5, 5, preemptions=1)


def test_the_schedulers_phases_add_up_to_the_time_since_the_add_also_with_preemptions() -> None:
    bench = Harness(num_blocks=8, max_num_seqs=4, budget=16)
    for index in range(3):
        bench.add([index % 2] * 8, max_tokens=16)
        bench.now += 0.5
    added = {id: 0.5 * (id - 1) for id in bench.asked}
    ended: dict[int, Timings] = {}
    while bench.scheduler.has_work:
        bench.submit()
        bench.now += 1.0
        for row in bench.complete():
            if row.timings is not None:
                told = row.timings
                spent = told.queue + told.prefill + told.decode + told.preempted
                assert spent == pytest.approx(bench.now - added[row.id])
            if row.finish is not None:
                assert row.timings is not None
                ended[row.id] = row.timings
    assert set(ended) == set(added)
    assert any(told.preemptions and told.preempted >= 1 for told in ended.values())
    assert all(told.prefill >= 1 for told in ended.values())


# -- the server's part -------------------------------------------------------------------------


def news(index: int = 0, finish: Any = None, timings: Timings | None = None) -> Delta:
    return Delta(index, "x", ids=(1,), finish=finish, timings=timings)


def watched(n: int) -> tuple[Clock, Timeline, Any]:
    clock = Clock()
    timeline = Timeline(clock)
    clock.now += 1
    with timeline.during("tokenise"):
        clock.now += 2
    job: Any = type("Job", (), {"prompt": [1, 2, 3], "n": n})()
    return clock, timeline, timeline.watch([job])


def test_the_engines_phases_are_those_of_the_choice_that_ended_last() -> None:
    clock, timeline, stay = watched(n=2)
    clock.now += 8
    stay.see(news(0, timings=Timings(queue=1, prefill=2)))
    stay.see(news(1, timings=Timings(queue=4, prefill=3)))
    clock.now += 2
    stay.see(news(0, "stop", Timings(queue=1, prefill=2, decode=2)))
    clock.now += 5
    stay.see(news(1, "length", Timings(queue=4, prefill=3, decode=6, preempted=1, preemptions=1)))
    clock.now += 0.5
    report = timeline.report()
    assert (report.receive_s, report.tokenise_s) == (1, 2)
    assert (report.queue_s, report.prefill_s, report.decode_s) == (4, 3, 6)
    assert (report.preempted_s, report.engine_s, report.respond_s) == (1, 1, 0.5)
    assert (report.preemptions, report.completion_tokens, report.total_s) == (1, 4, 18.5)


def test_what_a_stop_string_ends_has_decoded_until_then() -> None:
    clock, timeline, stay = watched(n=1)
    clock.now += 3
    stay.see(news(timings=Timings(queue=1, prefill=2)))
    clock.now += 4
    stay.see(news(finish="stop"))
    report = timeline.report()
    assert (report.queue_s, report.prefill_s, report.decode_s, report.engine_s) == (1, 2, 4, 0)


def test_a_client_that_takes_its_time_is_waited_for_only_once_the_answer_is_complete() -> None:
    clock, timeline, stay = watched(n=1)
    with timeline.sending():
        clock.now += 3  # the engine does not wait meanwhile
    with timeline.sending():
        stay.see(news(finish="stop", timings=Timings(decode=3)))
        clock.now += 7
    clock.now += 1
    report = timeline.report()
    assert (report.decode_s, report.client_s, report.respond_s) == (3, 7, 1)


def test_what_was_broken_off_unheard_has_been_with_the_engine() -> None:
    clock, timeline, stay = watched(n=1)
    clock.now += 3
    stay.end()
    report = timeline.report()
    assert (report.engine_s, report.total_s) == (3, 6)


# -- both, over HTTP ---------------------------------------------------------------------------


class Slow(FakeEngine):
    """Takes its time, and tells how much of it went where."""

    async def _run(self, add: Add) -> None:
        added = time.monotonic()
        await asyncio.sleep(0.1)
        admitted = time.monotonic()
        await asyncio.sleep(0.2)
        first = time.monotonic()
        told = Timings(queue=admitted - added, prefill=first - admitted)
        self._tell(Output(add.id, 0, [104], cached=1, timings=told))
        await asyncio.sleep(0.3)
        told.decode = time.monotonic() - first
        self.told = told
        self._tell(Output(add.id, 0, [105, EOS], finish="stop", last=True, timings=told))

    def _tell(self, row: Output) -> None:
        self.on_outputs(Outputs([row], Stats()))


def slow(server: Server) -> None:
    server.engine.__class__ = Slow


@pytest.mark.parametrize(
    ("kind", "stream", "usage"),
    [
        ("chat", False, False),
        ("complete", True, False),
        ("chat", True, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("complete", False, False),
                ("chat", True, False),
                ("complete", True, True),
            )
        ),
    ],
)
@pytest.mark.alone
def test_the_parts_are_where_the_time_went_and_add_up(kind: str, stream: bool, usage: bool) -> None:
    async def test() -> None:
        async with serving(says("")) as server:
            slow(server)
            options = {"include_usage": True} if usage else None
            begun = time.monotonic()
            answer = await getattr(server, kind)(
                return_timings=True, stream=stream, stream_options=options
            )
            passed = time.monotonic() - begun
            if stream:
                *chunks, last, _ = events(answer)
                assert not any("timings" in chunk for chunk in chunks)
                assert bool(last["choices"]) is not bool(options)
            else:
                last = answer.json()
            timings = last["timings"]
            check_sum(timings)
            assert 0.6 <= timings["total_s"] <= passed
            told = server.engine.told
            for part, slept in (("queue", 0.1), ("prefill", 0.2), ("decode", 0.3)):
                assert timings[f"{part}_s"] == pytest.approx(getattr(told, part), abs=0.01)
                assert timings[f"{part}_s"] >= slept
            read = len(server.engine.added[0].prompt)
            assert (timings["prompt_tokens"], timings["cached_tokens"]) == (read, 1)
            assert (timings["computed_tokens"], timings["completion_tokens"]) == (read - 1, 3)

    asyncio.run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_they_are_there_for_those_who_ask(stream: bool) -> None:
    async def test() -> None:
        async with serving(says("hello")) as server:
            for ask in (server.chat, server.complete):
                for asked in ({}, {"return_timings": None}, {"return_timings": False}):
                    assert "timings" not in (await ask(stream=stream, **asked)).text
            several = await server.complete(
                prompt=["a", "b"], n=2, echo=True, stream=stream, return_timings=True
            )
            assert several.text.count('"timings"') == 1
            refused = await server.chat(return_timings="yes")
            assert refused.json()["error"]["param"] == "return_timings"

    asyncio.run(test())
