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
    _add_generate(commands)
    _add_chat(commands)
    _add_models(commands)
    _add_inspect(commands)
    _add_plan(commands)
    _add_doctor(commands)
    _add_verify(commands)
    _add_quantize(commands)
    _add_replay(commands)
    _add_bench(commands)
    _add_train(commands)
    _add_export(commands)
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


def _add_generate(commands: Commands) -> None:
    command = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continue a text: the continuation goes to stdout as it comes.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import generate

        generate.add_flags(command)
        command.set_defaults(run=generate.run)

    command.fill = fill


def _add_chat(commands: Commands) -> None:
    command = commands.add_parser(
        "chat",
        help="converse with a model, or with any OpenAI server",
        description="Converse on the terminal with a model, or with any server of OpenAI's API.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import chat

        chat.add_flags(command)
        command.set_defaults(run=chat.run)

    command.fill = fill


def _add_models(commands: Commands) -> None:
    command = commands.add_parser(
        "models",
        help="list what is supported, and what is in the hub's cache",
        description="List the architectures that are supported and the models in the hub's cache.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import models

        models.add_flags(command)
        command.set_defaults(run=models.run)

    command.fill = fill


def _add_inspect(commands: Commands) -> None:
    command = commands.add_parser(
        "inspect",
        help="say what a model is",
        description="Say what a model is, from its files alone. No weights are loaded.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import inspect

        inspect.add_flags(command)
        command.set_defaults(run=inspect.run)

    command.fill = fill


def _add_plan(commands: Commands) -> None:
    command = commands.add_parser(
        "plan",
        help="say how much memory serving a model takes, and how many requests fit",
        description="Say what serving a model takes with these flags. No weights are loaded.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import plan

        plan.add_flags(command)
        command.set_defaults(run=plan.run)

    command.fill = fill


def _add_doctor(commands: Commands) -> None:
    command = commands.add_parser(
        "doctor",
        help="say whether this machine and these flags are fit for serving",
        description="Look at the machine and at the flags of rosellm serve, and say what to do.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import doctor

        doctor.add_flags(command)
        command.set_defaults(run=doctor.run)

    command.fill = fill


def _add_verify(commands: Commands) -> None:
    command = commands.add_parser(
        "verify",
        help="say how far what is served lies from the model in float32",
        description="Compare a model as it would be served with the same one in float32.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import verify

        verify.add_flags(command)
        command.set_defaults(run=verify.run)

    command.fill = fill


def _add_quantize(commands: Commands) -> None:
    command = commands.add_parser(
        "quantize",
        help="write a model with its weights in fewer bits",
        description="Write a folder with a model's weights in 8 or 4 bits, which loads directly.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import quantize

        quantize.add_flags(command)
        command.set_defaults(run=quantize.run)

    command.fill = fill


def _add_replay(commands: Commands) -> None:
    command = commands.add_parser(
        "replay",
        help="answer logged requests again, and compare the tokens",
        description="Answer the requests that a server has logged again, alone, one by one.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.commands import replay

        replay.add_flags(command)
        command.set_defaults(run=replay.run)

    command.fill = fill


def _add_bench(commands: Commands) -> None:
    from rosellm.bench.cli import add_parser

    add_parser(commands)


def _add_train(commands: Commands) -> None:
    command = commands.add_parser(
        "train",
        help="train a model from a TOML file",
        description="Train a GPT-2 or a Llama from a TOML file (docs/training.md).",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.rosetrainer import commands as trainer

        trainer.add_train_flags(command)
        command.set_defaults(run=trainer.run_train)

    command.fill = fill


def _add_export(commands: Commands) -> None:
    command = commands.add_parser(
        "export",
        help="turn a training checkpoint into a Hugging Face folder",
        description="Turn a checkpoint of rosellm train into a Hugging Face folder.",
        allow_abbrev=False,
    )

    def fill(command: flags.Parser) -> None:
        from rosellm.rosetrainer import commands as trainer

        trainer.add_export_flags(command)
        command.set_defaults(run=trainer.run_export)

    command.fill = fill
