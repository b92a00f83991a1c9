"""Messages from lines, and what is shown of what a model says."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from rosellm.commands.console import MORE, PROMPT, Output, history_file, read_message


def lines(*given: str) -> Callable[[str], str]:
    rest = list(given)

    def read_line(prompt: str) -> str:
        if not rest:
            raise EOFError
        assert prompt == (PROMPT if len(rest) == len(given) else MORE)
        return rest.pop(0)

    return read_line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one line"], "one line"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (["the end\\"], "the end\n"),
        (['"""', "one", "  two", '"""'], "one\n  two"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""all of it"""'], "all of it"),
        (['"""one', "", "three"], "one\n\nthree"),
        (['"""pasted\ntogether\n"""'], "pasted\ntogether"),
        (["pasted\ntogether"], "pasted\ntogether"),
        (['he said """no"""'], 'he said """no"""'),
    ],
)
def test_message(given: list[str], message: str) -> None:
    assert read_message(lines(*given)) == message


def test_the_end_of_the_input_is_no_message() -> None:
    with pytest.raises(EOFError):
        read_message(lines())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_takes_no_orders_from_a_model() -> None:
    hostile = "a\tb\n\x1b]0;title\x07\x9b2J\x7f é"
    terminal, file = Terminal(), io.StringIO()
    Output(terminal).write(hostile)
    Output(file).write(hostile)
    assert terminal.getvalue() == "a\tb\n\u241b]0;title\u2407\ufffd2J\ufffd é"
    assert file.getvalue() == hostile


def test_what_stdout_cannot_encode_is_replaced() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Output(stream).write("a rosé")
    assert raw.getvalue() == b"a ros?"


def test_history_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert str(history_file()) == f"{tmp_path}/rosellm/chat_history"
