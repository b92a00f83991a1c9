"""The command ``rosellm``. Each subcommand imports what it needs when it is the one that runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import rosellm
from rosellm.roseinfer.server import flags
from rosellm.roseinfer.server.__main__ import reporting_errors, serve

Commands: TypeAlias = "argparse._SubParsersAction[flags.Parser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code."""
    return reporting_errors(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv or ["--help"])
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def parser() -> flags.Parser:
    """The parser of every subcommand."""
    made = flags.Parser(
        prog="rosellm",
        description="Serve large language models, and measure how well that goes.",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"rosellm {rosellm.__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_bench(commands)
    return made


def _add_serve(commands: Commands) -> None:
    command = commands.add_parser(
        "serve",
        help="serve a model over HTTP, as OpenAI's API does",
        description="Serve a model over HTTP, as OpenAI's API does.",
        allow_abbrev=False,
    )
    flags.add_flags(command)
    command.set_defaults(run=lambda args: serve(flags.options(vars(args))))


def _add_bench(commands: Commands) -> None:
    from rosellm.bench.cli import add_parser

    add_parser(commands)
