"""Reasoning is taken off an answer, however it arrives."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosellm.roseinfer.config import ReasoningParser
from rosellm.roseinfer.text.answer_parser import AnswerFormat, Parser
from rosellm.roseinfer.text.parts import Call, Parts
from rosellm.roseinfer.text.reasoning import FORMATS, recognise
from tests.examples import examples


def read(format: AnswerFormat, pieces: list[str]) -> tuple[Parts, Parser]:
    parser = format.parser()
    assert parser is not None
    parts = Parts()
    for piece in pieces:
        parts += parser.feed(piece)
    return parts + parser.flush(), parser


def parse(format: AnswerFormat, text: str) -> Parts:
    """Read a text in all the ways to cut it in two, and in the smallest pieces."""
    whole, _ = read(format, [text])
    assert read(format, list(text))[0] == whole
    for place in range(len(text)):
        assert read(format, [text[:place], text[place:]])[0] == whole
    return whole


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("opened", [False, True])
def test_every_pair_of_markers(name: str, opened: bool) -> None:
    markers = FORMATS[name]
    format = AnswerFormat(name, opened=opened)
    for start in {markers.start, "" if opened or markers.opened else markers.start}:
        text = f"{start}\nTwo and\n two. \n{markers.end}\n\nFour. \n"
        assert parse(format, text) == Parts("Four. \n", "Two and\n two.")
        assert parse(format, f"{start}\n\n{markers.end}\n\nFour.") == Parts("Four.")
        assert parse(format, f"{start} cut o") == Parts("", "cut o")
        assert parse(format, f"{start}a{markers.end}") == Parts("", "a")


def test_an_answer_that_does_not_reason_is_all_content() -> None:
    format = AnswerFormat("think")
    for text in ("Hi", "\n Hi \n", "", " ", "<thin", "<thing>", "a <think>b</think> c", "</think>"):
        assert parse(format, text) == Parts(text)


def test_markers_are_special_only_once() -> None:
    text = "<think>a</think>b <think>c</think>"
    assert parse(AnswerFormat("think"), text) == Parts("b <think>c</think>", "a")


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("opened", [False, True])
def test_the_first_marker_counts_once_however_often_it_comes(name: str, opened: bool) -> None:
    markers = FORMATS[name]
    format = AnswerFormat(name, opened=opened)
    for gap in ("", "\n"):
        for times in (2, 3):
            more = gap.join([markers.start] * times)
            assert parse(format, more) == Parts("", gap.join([markers.start] * (times - 1)))
            text = f"{more}x{markers.end}y"
            kept = gap.join([markers.start] * (times - 1))
            assert parse(format, text) == Parts("y", f"{kept}x")


def test_where_the_reasoning_is() -> None:
    format = AnswerFormat("think")
    text = " <think>ab</think> c"
    parts, parser = read(format, list(text))
    assert (parts, parser.spans) == (Parts("c", "ab"), [(0, text.index(" c"))])
    assert read(format, ["no"])[1].spans == []
    [(start, end)] = read(format, ["<think>abc"])[1].spans
    assert (start, end > 10**9) == (0, True)
    unfinished = format.parser()
    assert unfinished is not None
    unfinished.feed("<think>abc")
    assert unfinished.spans == [(0, 10)]


def test_reasoning_comes_as_it_is_written() -> None:
    parser = AnswerFormat("think").parser()
    assert parser is not None
    said = [parser.feed(piece) for piece in ["<think>", "\nOne", " two", " \n", "</think>", "Ok"]]
    assert said == [
        Parts(),
        Parts(reasoning="One"),
        Parts(reasoning=" two"),
        Parts(),
        Parts(),
        Parts("Ok"),
    ]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ content.split('</think>')[-1] }}", "think"),
        ("[THINK]{{ thinking }}[/THINK]", "mistral"),
        ("Here is my thought process: ... Here is my response:", "granite"),
        ("<|im_start|>assistant", None),
    ],
)
def test_a_template_gives_its_markers_away(template: str, name: str | None) -> None:
    assert recognise(template) == name


def test_every_format_can_be_named() -> None:
    assert {*FORMATS, "harmony", "auto", "none"} == set(get_args(ReasoningParser))


# -- gpt-oss ---------------------------------------------------------------------------------

HARMONY = AnswerFormat(tools="harmony", names=frozenset({"f", "g"}))
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALLS_BOTH = (
    '<|start|>assistant<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|>'
    "<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}"
)
F = Call("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>Hi <b>", Parts("Hi <b>", "Hm.")),
        (f"{THOUGHT}<|channel|>final<|message|>Hi<|return|>", Parts("Hi", "Hm.")),
        ("<|channel|>analysis<|message|>cut", Parts("", "cut")),
        ("plain text", Parts("plain text")),
        ("", Parts()),
        ("<|channel|>final", Parts("<|channel|>final")),
        (
            THOUGHT + '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}',
            Parts("", "Hm.", (F,)),
        ),
        (
            f"{THOUGHT}<|channel|>commentary<|message|>I call.<|end|>{CALLS_BOTH}",
            Parts("I call.", "Hm.", (F, Call("g", "{}"))),
        ),
        (' to=functions.f<|channel|>commentary<|message|>{"a": 1}', Parts(calls=(F,))),
        (" to no one", Parts(" to no one")),
        (
            "<|channel|>commentary to=functions.h<|message|>{}<|call|>",
            Parts("<|channel|>commentary to=functions.h<|message|>{}<|call|>"),
        ),
        (
            "<|channel|>commentary to=functions.f<|message|>{<|call|>",
            Parts("<|channel|>commentary to=functions.f<|message|>{<|call|>"),
        ),
    ],
)
def test_channels(text: str, parts: Parts) -> None:
    assert parse(HARMONY, text) == parts


@pytest.mark.parametrize(
    ("body", "arguments", "content", "whole"),
    [
        ('{"a": "cut o', '{"a": "cut o', "", False),
        ('{"a": [1}<|call|>', '{"a": [1}', "", False),
        ('{"a": "<|call|> b"} <|call|>', '{"a": "<|call|> b"}', "", True),
        ('{"a": 1} so<|call|>', '{"a": 1}', " so", True),
        (" <|call|>", "{}", "", True),
        ("", "{}", "", True),
        ('"{\\"a\\": 1}"<|call|>', '{"a": 1}', "", True),
    ],
)
def test_a_call_on_a_channel(body: str, arguments: str, content: str, whole: bool) -> None:
    text = f"<|channel|>commentary to=functions.f<|message|>{body}"
    assert parse(HARMONY, text) == Parts(content, calls=(Call("f", arguments),))
    assert read(HARMONY, [text])[1].whole is whole


def test_arguments_on_a_channel_come_while_they_are_written() -> None:
    parser = HARMONY.parser()
    assert parser is not None
    parser.feed("<|channel|>commentary to=functions.f<|message|>")
    assert parser.feed('{"a":').calls == (Call("f", '{"a":'),)
    assert parser.feed(' "one').calls == (Call("", ' "one'),)
    assert parser.feed(" two<|ca").calls == (Call("", " two"),)
    assert parser.feed('"}<|call|>').calls == (Call("", '<|ca"}'),)


def test_the_analysis_is_the_reasoning() -> None:
    _, parser = read(HARMONY, list(f"{THOUGHT}<|channel|>final<|message|>Hi"))
    assert parser.spans == [(0, THOUGHT.index("<|start|>"))]


CHANNEL_PIECES = st.sampled_from(
    [
        *HARMONY.markers,
        "analysis",
        "final",
        "commentary to=functions.f",
        " to=functions.g",
        "{}",
        '{"a": "b',
        '"}',
        "x",
    ]
)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(CHANNEL_PIECES, max_size=16), st.data())
def test_a_stream_of_channels_is_the_whole(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=len(text))))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    (streamed, one), (whole, other) = read(HARMONY, pieces), read(HARMONY, [text])
    assert (streamed, one.whole, one.spans) == (whole, other.whole, other.spans)
