"""Stop strings cut a text at the same place however it arrives, and none of them leaks."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosellm.roseinfer.text.stop import StopFilter

# Two letters, so that stop strings overlap one another and themselves.
TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def oracle(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Look at every end of the text in turn: the first at which a stop string ends, wins."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            match = max(ending, key=len)
            return text[: end if include else end - len(match)], match
    return text, None


def held_back(text: str, stops: list[str]) -> str:
    """Return the longest end of the text that some stop string goes on from."""
    begins = [stop[:n] for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(begins, key=len, default="")


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=40), st.booleans())
def test_any_split(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    stream = StopFilter(stops, include)
    fed = out = ""
    for piece in pieces(text, cuts):
        out += stream.feed(piece)
        fed += piece
        expected, match = oracle(fed, stops, include)
        assert stream.matched == match
        held = "" if match else held_back(fed, stops)
        assert out == expected.removesuffix(held)
    assert (out + stream.flush(), stream.matched) == oracle(text, stops, include)


def feed_each(stops: list[str], text: str, include: bool = False) -> list[str]:
    stream = StopFilter(stops, include)
    return [*map(stream.feed, text), stream.flush()]


def test_the_match_that_ends_first_wins() -> None:
    assert "".join(feed_each(["abcd", "c"], "xabcd")) == "xab"


def test_of_two_that_end_together_the_longer_wins() -> None:
    stream = StopFilter(["cd", "bcd"])
    assert stream.feed("abcd") == "a"
    assert stream.matched == "bcd"


def test_a_false_start_is_let_go_at_once() -> None:
    assert feed_each(["</s>"], "a<b</sx") == ["a", "", "<b", "", "", "", "</sx", ""]


def test_nothing_follows_a_match() -> None:
    stream = StopFilter(["."], include=True)
    assert [stream.feed("End. More"), stream.feed("more"), stream.flush()] == ["End.", "", ""]


def test_no_stop_strings() -> None:
    assert feed_each([], "ab") == ["a", "b", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopFilter(["a", ""])


@pytest.mark.alone
def test_the_work_does_not_grow_with_what_is_held() -> None:
    stream = StopFilter(["a" * 5000 + "b"])
    start = time.perf_counter()
    text = "".join(stream.feed("a") for _ in range(50_000)) + stream.flush()
    assert text == "a" * 50_000
    assert time.perf_counter() - start < 2  # seconds: many times what it takes
