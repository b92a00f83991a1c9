"""``rosellm chat``: a conversation on the terminal, with a model of one's own or a server's."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rosellm.commands import local, sampling_flags
from rosellm.commands.answers import Answerer
from rosellm.commands.console import Input, Output, exit_code, note
from rosellm.commands.conversation import Session
from rosellm.roseinfer.errors import ConfigError
from rosellm.roseinfer.server import flags

EXAMPLES = """\
in the conversation:
  /help shows the commands; Ctrl-C stops an answer, Ctrl-D leaves

with --url, the API key is taken from ROSELLM_API_KEY or else OPENAI_API_KEY

in a script: one message a line; the first error or Ctrl-C ends it (exit code 2, 130)

examples:
  rosellm chat                                            with the small demo model
  rosellm chat my-llama
  rosellm chat my-llama --system "Answer in rhymes." --temperature 0.7
  rosellm chat --url http://127.0.0.1:8000
  rosellm chat --url https://api.example.com/v1 --model big-model
  rosellm chat my-llama < questions.txt > answers.txt     one message a line
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm chat``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [MODEL] [options]\n       %(prog)s --url URL [--model NAME] [options]"
    command.epilog = EXAMPLES
    flags.add_model(command)
    group = command.add_argument_group("Conversation")
    group.add_argument("--system", metavar="TEXT", help="system prompt to begin with")
    group = command.add_argument_group("Server, instead of MODEL")
    group.add_argument("--url", metavar="URL", help="any server of OpenAI's API, ours or another")
    group.add_argument("--model", dest="name", metavar="NAME", help="default: the first it lists")
    sampling_flags.add_flags(command, without=frozenset({"n"}))
    local.add_flags(command)


def run(args: argparse.Namespace) -> int:
    """Converse until the input ends. Returns the exit code."""
    given = vars(args)

    def program() -> None:
        with _answerer(given) as answerer, Input() as source:
            note(f"{answerer.about}" + (" · /help for help" if source.is_terminal else ""))
            Session(answerer, given["system"], source, Output()).run()

    return exit_code(program)


@contextmanager
def _answerer(given: Mapping[str, Any]) -> Iterator[Answerer]:
    """Whoever the command line says is to answer.

    Raises:
        RosellmError: it cannot.
    """
    params = sampling_flags.given(given)
    if given["url"] is None:
        if given["name"] is not None:
            raise ConfigError("--model names a model of --url; a local one is: rosellm chat MODEL")
        with local.load(given) as llm:
            llm.service.check_generates()
            yield local.Local(llm, sampling_flags.params(given))
        return
    for name in local.given(given):
        flag = "MODEL" if name == "model" else "--" + name.replace("_", "-")
        raise ConfigError(f"{flag} is for a local model and has no place beside --url")
    from rosellm.commands.remote import Remote

    with Remote(given["url"], given["name"], params) as remote:
        yield remote
