"""In which order requests come to a new engine, and how one that kills engines is found."""

from __future__ import annotations

from rosellm.roseinfer.server.readmission import Readmission


def line() -> tuple[Readmission, list[int]]:
    sent: list[int] = []
    return Readmission(sent.append), sent


def test_each_is_sent_when_the_one_before_has_had_news() -> None:
    readmission, sent = line()
    assert readmission.restart([1, 2, 3]) is None
    assert sent == [1]
    readmission.heard({7})
    assert sent == [1]
    readmission.heard({1, 7})
    readmission.heard({1, 2})
    readmission.heard({3})
    assert sent == [1, 2, 3]


def test_who_is_gone_is_not_sent() -> None:
    readmission, sent = line()
    readmission.restart([1, 2, 3, 4])
    readmission.heard({1, 2, 3})
    assert sent == [1, 4]


def test_the_one_that_was_sent_last_before_two_deaths_is_at_fault() -> None:
    readmission, sent = line()
    assert readmission.restart([1, 2, 3]) is None
    readmission.heard({1})
    assert readmission.restart([1, 2, 3]) is None, "once may be chance"
    readmission.heard({1})
    assert readmission.restart([1, 2, 3]) == 2
    readmission.heard({1})
    assert sent == [1, 2, 1, 2, 1, 3]


def test_deaths_over_different_requests_are_chance() -> None:
    readmission, _ = line()
    readmission.restart([1, 2, 3])
    assert readmission.restart([1, 2, 3]) is None
    readmission.heard({1})
    assert readmission.restart([1, 2, 3]) is None
    readmission.heard({1})
    readmission.heard({2})
    assert readmission.restart([1, 2, 3]) is None


def test_an_engine_that_dies_when_everything_runs_accuses_nobody() -> None:
    readmission, _ = line()
    for _ in range(5):
        assert readmission.restart([1, 2]) is None
        readmission.heard({1})
        readmission.heard({2})
