"""The terminal, or the pipes in its place: messages in, text out, notes on the side.

Answers go to stdout and everything else to stderr, so that a redirected stdout holds answers
only. It knows nothing about conversations.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TextIO

from rosellm.commands.answers import Pieces
from rosellm.roseinfer.errors import RosellmError

PROMPT, MORE = "> ", ". "
FENCE = '"""'
HISTORY_LINES = 1000
# What would move a terminal's cursor, or give it orders: all control characters but tab and
# newline, shown as their pictures where Unicode has some.
HARMLESS = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


class Output:
    """Text on stdout as it comes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()
        _never_fail(self._stream)

    def write(self, text: str) -> None:
        """Show a piece at once. A terminal gets no control characters from a model."""
        self._stream.write(text.translate(HARMLESS) if self._is_terminal else text)
        self._stream.flush()

    def stream(self, pieces: Pieces, seen: list[str]) -> None:
        """Show a whole answer, or as much of it as comes, on lines of its own.

        Args:
            pieces: closed at the end, whatever ends it.
            seen: gathers what is shown.
        """
        try:
            for piece in pieces:
                if piece:
                    seen.append(piece)
                    self.write(piece)
        except (KeyboardInterrupt, RosellmError):
            self.write("\n" if seen else "")
            raise
        finally:
            pieces.close()
        self.write("\n")


def note(text: str) -> None:
    """Say something that is no answer."""
    print(text, file=sys.stderr, flush=True)


def exit_code(program: Callable[[], None]) -> int:
    """Run a program for a shell: 130 if Ctrl-C ended it, 141 if the reader of stdout left."""
    try:
        program()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more when it ends; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


class Input:
    """Lines from stdin. On a terminal they can be edited, and are remembered across sessions."""

    def __init__(self) -> None:
        _never_fail(sys.stdin)
        self.is_terminal = sys.stdin.isatty()
        self._readline = _readline() if self.is_terminal and sys.stdout.isatty() else None
        self._known = 0

    def __enter__(self) -> Input:
        if self._readline is not None:
            with contextlib.suppress(OSError):
                self._readline.read_history_file(history_file())
            self._known = self._readline.get_current_history_length()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._readline is not None:
            with contextlib.suppress(OSError):  # a home that cannot be written to is no error
                _save(self._readline, self._known)

    def read_line(self, prompt: str) -> str:
        """The next line, without its end.

        Raises:
            EOFError: there is none.
        """
        if self._readline is not None:
            return input(prompt)
        if self.is_terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


def read_message(read_line: Callable[[str], str]) -> str:
    r"""One message: a line, lines that end in a backslash, or a block between triple quotes.

    The end of the input ends a message that has begun.

    >>> lines = iter(["one\\", "two", '\"""three', 'four\"""'])
    >>> read_message(lambda _: next(lines)), read_message(lambda _: next(lines))
    ('one\ntwo', 'three\nfour')

    Raises:
        EOFError: the input has ended.
    """
    text = read_line(PROMPT)
    if text.lstrip().startswith(FENCE):
        return _block(text.lstrip().removeprefix(FENCE), read_line)
    with contextlib.suppress(EOFError):
        while text.endswith("\\"):
            text = f"{text[:-1]}\n"
            text += read_line(MORE)
    return text


def history_file() -> Path:
    """Where typed lines are kept: https://specifications.freedesktop.org/basedir-spec/latest/."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "rosellm" / "chat_history"


def _block(text: str, read_line: Callable[[str], str]) -> str:
    with contextlib.suppress(EOFError):
        while not text.rstrip().endswith(FENCE):
            text += f"\n{read_line(MORE)}"
    return text.rstrip().removesuffix(FENCE).strip("\n")


def _never_fail(stream: TextIO) -> None:
    """Replace what the stream's encoding cannot say, rather than end with an error."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _readline() -> ModuleType | None:
    """Line editing, where this Python has it: importing it is what makes ``input`` use it."""
    try:
        import readline
    except ImportError:
        return None
    if "libedit" not in (readline.__doc__ or ""):  # GNU's: lines pasted together stay together
        readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_history_length(HISTORY_LINES)
    return readline


def _save(readline: ModuleType, known: int) -> None:
    """Append this session's lines, so that another one at the same time keeps its own."""
    path = history_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    if hasattr(readline, "append_history_file"):
        readline.append_history_file(readline.get_current_history_length() - known, path)
    else:
        readline.write_history_file(path)
