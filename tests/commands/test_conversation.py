"""The loop of ``rosellm chat`` over an answerer that tests script."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from rosellm.commands.answers import OVERFLOW, Message
from rosellm.commands.console import Output
from rosellm.commands.conversation import Session
from rosellm.roseinfer.errors import EngineDeadError, RequestError, RosellmError


class Lines:
    """Given messages in the place of a terminal or a pipe; exceptions are raised."""

    def __init__(self, given: Sequence[str | BaseException], is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self._rest = list(given)

    def read_line(self, prompt: str) -> str:
        if not self._rest:
            raise EOFError
        line = self._rest.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


class Scripted:
    """Answers each message with itself, in two pieces, unless an ending is planned for it."""

    about = "a script"

    def __init__(self, endings: dict[str, BaseException]) -> None:
        self.endings = endings
        self.finish: str | None = None
        self.asked: list[list[Message]] = []
        self.closed = 0

    def stream(self, messages: Sequence[Message]) -> Generator[str, None, None]:
        self.asked.append(list(messages))
        question = messages[-1]["content"]
        ending = self.endings.get(question)
        try:
            if ending is None or isinstance(ending, KeyboardInterrupt):
                yield "re: "
                yield ""
            if ending is not None:
                raise ending
            yield question
            self.finish = "length" if question == "long" else "stop"
        finally:
            self.closed += 1


Converse = Callable[..., tuple[Scripted, str]]


@pytest.fixture
def converse() -> Converse:
    def run(
        *given: Any, system: str | None = None, terminal: bool = True, **endings: BaseException
    ) -> tuple[Scripted, str]:
        answerer, out = Scripted(endings), io.StringIO()
        Session(answerer, system, Lines(given, terminal), Output(out)).run()  # type: ignore[arg-type]
        assert answerer.closed == len(answerer.asked)
        return answerer, out.getvalue()

    return run


def roles(messages: list[Message]) -> str:
    return " ".join(f"{message['role'][0]}:{message['content']}" for message in messages)


def test_answers_are_remembered(converse: Converse) -> None:
    answerer, out = converse("hi", "  ", "and?", "/exit", "never")
    assert [roles(each) for each in answerer.asked] == ["u:hi", "u:hi a:re: hi u:and?"]
    assert out == "re: hi\nre: and?\n"


def test_system_prompt(converse: Converse, capsys: pytest.CaptureFixture[str]) -> None:
    answerer, _ = converse(
        "a", "/system  be brief ", "/reset", "/system", "b", "/system -", "c", system="rhyme"
    )
    assert [roles(each) for each in answerer.asked] == [
        "s:rhyme u:a",
        "s:be brief u:b",
        "u:b a:re: b u:c",
    ]
    notes = capsys.readouterr().err
    assert notes.count("system prompt: be brief") == 2
    assert "system prompt: (none)" in notes


def test_retry_and_undo(converse: Converse) -> None:
    answerer, _ = converse("/retry", "/undo", "a", "b", "/retry", "/undo", "/retry", "c")
    assert [roles(each) for each in answerer.asked] == [
        "u:a",
        "u:a a:re: a u:b",
        "u:a a:re: a u:b",
        "u:a a:re: a u:c",
    ]


def test_ctrl_c_keeps_what_was_shown(
    converse: Converse, capsys: pytest.CaptureFixture[str]
) -> None:
    answerer, out = converse("a", "b", a=KeyboardInterrupt())
    assert roles(answerer.asked[1]) == "u:a a:re:  u:b"
    assert out == "re: \nre: b\n"
    assert "(stopped)" in capsys.readouterr().err


def test_an_answer_that_was_cut_short(
    converse: Converse, capsys: pytest.CaptureFixture[str]
) -> None:
    converse("a", "long", "b")
    assert capsys.readouterr().err.count("(cut short") == 1


def test_ctrl_c_at_the_prompt_says_how_to_leave(
    converse: Converse, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = converse(KeyboardInterrupt(), "b")
    assert out == "re: b\n"
    assert "/exit or Ctrl-D leaves" in capsys.readouterr().err


def test_a_refused_question_is_forgotten(
    converse: Converse, capsys: pytest.CaptureFixture[str]
) -> None:
    full = RequestError("the context holds 8 tokens", code=OVERFLOW)
    answerer, out = converse("a", "long", "b", "/retry", long=full)
    assert [roles(each) for each in answerer.asked[2:]] == ["u:a a:re: a u:b"] * 2
    assert out == "re: a\nre: b\nre: b\n"
    notes = capsys.readouterr().err
    assert "error: the context holds 8 tokens\n(the context is full: " in notes
    assert "/reset" in notes


def test_an_unknown_command_is_not_sent(
    converse: Converse, capsys: pytest.CaptureFixture[str]
) -> None:
    answerer, _ = converse("/etc/passwd is what?", " /etc/passwd is what?", "/help")
    assert [roles(each) for each in answerer.asked] == ["u: /etc/passwd is what?"]
    notes = capsys.readouterr().err
    assert "there is no /etc/passwd" in notes
    assert "/system TEXT" in notes


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), RosellmError("the server is gone")])
def test_a_script_ends_at_the_first_failure(converse: Converse, ending: BaseException) -> None:
    with pytest.raises(type(ending)):
        converse("a", "b", terminal=False, a=ending)


def test_a_dead_engine_ends_it(converse: Converse) -> None:
    with pytest.raises(EngineDeadError):
        converse("a", "b", a=EngineDeadError("killed"))
