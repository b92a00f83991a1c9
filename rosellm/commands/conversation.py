"""The loop of ``rosellm chat``: messages, commands, answers, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rosellm.commands.answers import Answerer, Message, overflows
from rosellm.commands.console import Input, Output, note, read_message
from rosellm.roseinfer.errors import EngineDeadError, RosellmError

HELP = """\
/system TEXT  set the system prompt; without TEXT, show it; a dash removes it
/retry        ask the last question again
/undo         forget the last question and its answer
/reset        forget all questions and answers, but not the system prompt
/help         show this
/exit         leave; Ctrl-D does too

A line that ends in a backslash goes on in the next one, and \"""...\""" may hold many lines.
Ctrl-C stops an answer. To send a message that begins with a slash, put a space before it."""
HOW_TO_LEAVE = "(/exit or Ctrl-D leaves)"
NO_ROOM = "(the context is full: /undo takes the last exchange back, /reset starts anew)"
CUT_SHORT = "(cut short: at --max-tokens, or because the context is full)"
NOTHING_YET = "(nothing has been asked yet)"


@dataclass
class History:
    """A conversation so far: an optional system prompt, then questions and answers in turn."""

    system: str | None = None
    exchanges: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str) -> list[Message]:
        """All of it and the next question, as a model is given it."""
        return list(self._messages(question))

    def _messages(self, question: str) -> Iterator[Message]:
        if self.system is not None:
            yield {"role": "system", "content": self.system}
        for asked, answered in self.exchanges:
            yield {"role": "user", "content": asked}
            yield {"role": "assistant", "content": answered}
        yield {"role": "user", "content": question}


class Session:
    """One conversation from its first prompt to its end.

    On a terminal an error or Ctrl-C costs one answer. In a script, where nobody would notice,
    either ends the session.
    """

    def __init__(self, answerer: Answerer, system: str | None, source: Input, out: Output) -> None:
        self._answerer = answerer
        self._history = History(system)
        self._last: str | None = None
        self._input = source
        self._out = out
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._system,
            "/retry": self._retry,
            "/undo": self._undo,
            "/reset": self._reset,
            "/help": lambda _: note(HELP),
            "/exit": _leave,
        }

    def run(self) -> None:
        """Converse until the input ends or ``/exit``."""
        while True:
            try:
                self._turn()
            except EOFError:
                if self._input.is_terminal:
                    note("")
                return
            except _Leave:
                return
            except KeyboardInterrupt:
                if not self._input.is_terminal:
                    raise
                note(f"\n{HOW_TO_LEAVE}")

    def _turn(self) -> None:
        message = read_message(self._input.read_line)
        if message.startswith("/"):
            self._obey(message)
        elif message.strip():
            self._ask(message)

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            note(f"(there is no {name}; /help shows what there is)")
        else:
            command(rest.strip())

    # -- answers -------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        """Answer a question; what is shown of the answer, if anything, is remembered."""
        self._last = question
        answer: list[str] = []
        try:
            self._out.stream(self._answerer.stream(self._history.messages(question)), answer)
            if self._answerer.finish == "length":
                note(CUT_SHORT)
        except (KeyboardInterrupt, RosellmError) as error:
            if not self._input.is_terminal or isinstance(error, EngineDeadError):
                raise
            _explain(error)
        if answer:
            self._history.exchanges.append((question, "".join(answer)))

    # -- commands ------------------------------------------------------------------------------

    def _system(self, text: str) -> None:
        if text:
            self._history.system = None if text == "-" else text
        note(f"system prompt: {self._history.system or '(none)'}")

    def _retry(self, _: str) -> None:
        if self._last is None:
            return note(NOTHING_YET)
        exchanges = self._history.exchanges
        if exchanges and exchanges[-1][0] == self._last:
            exchanges.pop()
        return self._ask(self._last)

    def _undo(self, _: str) -> None:
        if not self._history.exchanges:
            return note(NOTHING_YET)
        self._last = None
        question, _ = self._history.exchanges.pop()
        return note(f"(forgot: {' '.join(question.split())[:60]})")

    def _reset(self, _: str) -> None:
        self._history.exchanges.clear()
        self._last = None
        note("(a new conversation)")


def _explain(error: BaseException) -> None:
    """Say why an answer is missing or ends early."""
    note("(stopped)" if isinstance(error, KeyboardInterrupt) else f"error: {error}")
    if overflows(error):
        note(NO_ROOM)


class _Leave(Exception):
    """``/exit``."""


def _leave(_: str) -> None:
    raise _Leave
