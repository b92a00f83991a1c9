"""What is drafted: places found again after differences, repetitions, and drafts that fit."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosellm.roseinfer.speculation.drafter import Drafter
from rosellm.roseinfer.speculation.ngram import Lookup
from rosellm.roseinfer.speculation.packed import Packed
from rosellm.roseinfer.speculation.prediction import Alignment

FEW = st.lists(st.integers(0, 2), max_size=30)
TOKENS = st.lists(st.sampled_from([0, 1, 2, 255, 256, 65536, 2**24, 2**31 - 1]), max_size=20)


def steps(answer: Sequence[int], drafter: Drafter) -> int:
    """Steps to an answer whose drafts come from there."""
    known: list[int] = [-1 % 100]
    count = done = 0
    while done < len(answer):
        draft = drafter.propose(known, len(answer) - done - 1)
        right = 0
        while right < len(draft) and draft[right] == answer[done + right]:
            right += 1
        new = answer[done : done + right + 1]
        drafter.follow(new)
        drafter.learn(len(draft), right)
        known += new
        done += len(new)
        count += 1
    assert known[1:] == list(answer)
    return count


# -- searching --------------------------------------------------------------------------------


@given(tokens=TOKENS, run=st.data())
def test_runs_are_found_where_a_plain_search_finds_them(
    tokens: list[int], run: st.DataObject
) -> None:
    packed = Packed(tokens[:3])
    packed.extend(tokens[3:])
    assert len(packed) == len(tokens)
    wanted = run.draw(st.lists(st.sampled_from([*tokens, 1]), min_size=1, max_size=3))
    start = run.draw(st.integers(0, len(tokens)))
    end = run.draw(st.integers(0, len(tokens) + 2))
    places = [
        at
        for at in range(start, min(end, len(tokens)) - len(wanted) + 1)
        if tokens[at : at + len(wanted)] == wanted
    ]
    assert packed.find(wanted, start, end) == (places[0] if places else None)
    assert packed.find_last(wanted, start, end) == (places[-1] if places else None)


# -- predictions ------------------------------------------------------------------------------


def test_an_answer_as_predicted_is_accepted_whole() -> None:
    alignment = Alignment([5, 6, 7, 8])
    assert alignment.propose(3) == (5, 6, 7)
    alignment.follow([5, 6])
    assert alignment.propose(9) == (7, 8)
    alignment.follow([7, 8])
    assert (alignment.propose(9), alignment.accepted, alignment.rejected) == ((), 4, 0)


@pytest.mark.parametrize(
    ("answer", "then"),
    [
        ([0, 1, 2, 99], 4),  # one token in another's place
        ([0, 1, 2, 98, 99, 4], 5),  # two in one's place
        ([0, 1, 2, 99, 3], 4),  # one put in
        ([0, 1, 2, 97, 98, 99, 3], 4),  # three put in
        ([0, 1, 2, 4], 5),  # one left out
        ([0, 1, 2, 12], 13),  # nine left out
        ([0, 1, 2, 99, 98, 97, 96, 6, 7], 8),  # four in three's place
        ([99, 0], 1),  # before the beginning
        ([0, 1, 2, 99, 98, 97, 40, 41, 42, 43], 44),  # a long stretch left out
        ([*range(30), 99, 98, 4, 5, 6, 7], 8),  # what came before comes again
    ],
)
def test_the_place_is_found_again(answer: list[int], then: int) -> None:
    alignment = Alignment(range(50))
    alignment.follow(answer)
    assert alignment.propose(1) == (then,)


@given(FEW, FEW)
def test_counts_stay_within_the_prediction(prediction: list[int], answer: list[int]) -> None:
    """A token of it counts once, however often the answer comes back to it."""
    alignment = Alignment(prediction)
    for token in answer:
        before = alignment.accepted
        right = alignment.propose(1) == (token,)
        alignment.follow([token])
        assert alignment.accepted - before in ((0, 1) if right else (0,))
    assert alignment.accepted <= min(len(prediction), len(answer))
    assert alignment.accepted + alignment.rejected == len(prediction)


@given(FEW, FEW, st.lists(st.integers(1, 5)))
def test_it_does_not_matter_in_what_pieces_an_answer_comes(
    prediction: list[int], answer: list[int], sizes: list[int]
) -> None:
    whole, pieces = Alignment(prediction), Alignment(prediction)
    whole.follow(answer)
    for size in [*sizes, len(answer)]:
        pieces.follow(answer[:size])
        answer = answer[size:]
    assert pieces.propose(50) == whole.propose(50)
    assert pieces.accepted == whole.accepted


# -- prompt lookup ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "draft"),
    [
        ([1, 2, 3, 4, 5, 1, 2], (3, 4, 5, 1)),
        ([1, 2, 8, 1, 2, 9, 1, 2], (9, 1, 2, 9)),  # the last time decides
        ([7, 1, 2, 8, 6, 1, 2, 9, 7, 1, 2], (8, 6, 1, 2)),  # and before it the longest run
        ([1, 2, 1, 2, 1], (2, 1, 2, 1)),  # the draft goes on repeating
        ([5, 5, 5], (5, 5, 5, 5)),
        ([1, 2, 3, 1], ()),  # one token alone says nothing
        ([1, 2], ()),
        ([1], ()),
    ],
)
def test_what_followed_before_is_drafted(tokens: list[int], draft: tuple[int, ...]) -> None:
    assert Lookup().propose(tokens, 4) == draft


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 9))
def test_lookups_as_tokens_come_equal_those_anew(tokens: list[int], limit: int) -> None:
    lookup = Lookup()
    for end in range(1, len(tokens) + 1):
        draft = lookup.propose(tokens[:end], limit)
        assert draft == Lookup().propose(tokens[:end], limit)
        assert len(draft) in (0, limit)


# -- how much ---------------------------------------------------------------------------------


@given(prediction=FEW, tokens=st.lists(st.integers(0, 2), min_size=1), limit=st.integers(-1, 20))
def test_a_draft_is_never_longer_than_allowed(
    prediction: list[int], tokens: list[int], limit: int
) -> None:
    drafter = Drafter(prediction, lookup=True, most=6)
    for _ in range(4):
        assert len(drafter.propose(tokens, limit)) <= max(0, min(limit, 6))
        drafter.learn(4, 4)


def test_drafts_grow_while_they_are_right_and_shrink_to_what_was() -> None:
    drafter = Drafter(range(1000), lookup=False, most=16)
    lengths = []
    for drafted, accepted in [(4, 4), (8, 8), (16, 16), (16, 5), (6, 0), (2, 2), (0, 0)]:
        lengths.append(len(drafter.propose([0], 100)))
        drafter.learn(drafted, accepted)
    assert [*lengths, len(drafter.propose([0], 100))] == [4, 8, 16, 16, 6, 2, 4, 4]


def test_a_text_with_ten_words_changed_takes_few_steps() -> None:
    """400 tokens of a vocabulary of 150, words of one or two tokens."""
    for seed in range(20):
        rng = random.Random(seed)
        prediction = [rng.randrange(150) for _ in range(400)]
        answer: list[int] = []
        changed = set(rng.sample(range(400), 10))
        for at, token in enumerate(prediction):
            new = [rng.randrange(150) for _ in range(rng.randrange(3))]
            answer += new if at in changed else [token]
        assert steps(answer, Drafter(prediction, lookup=False, most=16)) < len(answer) / 4


def test_a_prediction_of_something_else_costs_few_drafts() -> None:
    rng = random.Random(0)
    prediction, answer = ([rng.randrange(150) for _ in range(400)] for _ in range(2))
    drafter = Drafter(prediction, lookup=False, most=16)
    assert steps(answer, drafter) <= 400
