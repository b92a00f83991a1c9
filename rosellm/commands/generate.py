"""``rosellm generate``: one text continued, on stdout, for people and for shell scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from rosellm.commands import local, sampling_flags
from rosellm.commands.console import Output, exit_code, note
from rosellm.roseinfer import demo
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import LLM, Completion, SamplingParams

EXAMPLES = """\
One answer is streamed. With --n above 1 and with --json, answers come when all are whole.

exit codes: 130 after Ctrl-C, 141 if stdout was closed early, 2 after an error

examples:
  rosellm generate rosellm-demo "Once upon a time" --max-tokens 64
  rosellm generate my-llama "Once upon a time" --temperature 0.8 --seed 7 --stop "The end"
  rosellm generate my-llama < prompt.txt > continuation.txt
  rosellm generate my-llama "Once upon a time" --n 3 --json | jq -r .text
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm generate``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s MODEL [PROMPT] [options]\n       %(prog)s [options] < FILE"
    command.epilog = EXAMPLES
    flags.add_model(command)
    command.add_argument(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help="the text to continue; - or none reads it from stdin, without its last newline",
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="print each answer as a line of JSON: index, text, token_ids, finish_reason, usage",
    )
    sampling_flags.add_flags(command)
    local.add_flags(command, without=("chat_template",))


def run(args: argparse.Namespace) -> int:
    """Continue one text. Returns the exit code."""
    given = vars(args)

    def program() -> None:
        params = sampling_flags.params(given)
        prompt = _prompt(given["prompt"])
        with local.load(given) as llm:
            _answer(llm, prompt, params, as_json=given["json"])

    return exit_code(program)


@dataclass(frozen=True)
class Usage:
    """How many tokens one answer took."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Line:
    """One answer as ``--json`` prints it."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage


def _answer(llm: LLM, prompt: str, params: SamplingParams, *, as_json: bool) -> None:
    out = Output()
    if params.choices == 1 and not as_json:
        return out.stream(llm.stream(prompt, params), [])
    completion = llm.generate(prompt, params)
    if as_json:
        out.write("".join(f"{line}\n" for line in _json(completion)))
        return None
    for number, choice in enumerate(completion.choices, 1):
        note(f"({number} of {params.choices})")
        out.write(f"{choice.text}\n")
    return None


def _json(completion: Completion) -> Iterator[str]:
    for index, choice in enumerate(completion.choices):
        usage = Usage(
            prompt_tokens=len(completion.prompt_token_ids),
            cached_tokens=completion.cached_tokens,
            completion_tokens=len(choice.token_ids),
        )
        line = Line(index, choice.text, choice.token_ids, choice.finish_reason, usage)
        yield msgspec.json.encode(line).decode()


def _prompt(given: str | None) -> str:
    """The text to continue.

    Raises:
        ConfigError: there is none, or it is no text.
    """
    if given is None and sys.stdin.isatty():
        raise ConfigError(
            f'which text? rosellm generate MODEL "a text" (a MODEL is {demo.NAME}), or pipe one in'
        )
    if given in (None, "-"):
        data = sys.stdin.buffer.read()
        return _text(data.removesuffix(b"\n").removesuffix(b"\r"), "stdin")
    assert given is not None
    return _text(given.encode(errors="surrogateescape"), "PROMPT")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text: byte {error.start} is not") from None
