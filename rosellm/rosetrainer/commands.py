"""The flags of ``rosellm train`` and ``rosellm export``; torch is imported when one runs."""

from __future__ import annotations

import argparse


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``rosellm train``."""
    parser.add_argument("config", metavar="CONFIG", help="TOML file; docs/training.md has its keys")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="a key of the config file, set here instead; may be given often",
    )
    parser.add_argument(
        "--prepare-only", action="store_true", help="tokenise the data into data.cache, and leave"
    )
    parser.add_argument(
        "--stop-after",
        metavar="MINUTES",
        type=float,
        help="save a checkpoint and leave after so long; the same command goes on from there",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start over, though run.out holds a checkpoint"
    )


def run_train(args: argparse.Namespace) -> int:
    """``rosellm train``; the exit code."""
    from rosellm.rosetrainer.train import run

    return run(args)


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``rosellm export``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pt that rosellm train wrote")
    parser.add_argument("out", metavar="OUT", help="folder to write; made if need be")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="what servers sample this model at unless told otherwise (default: say nothing)",
    )


def run_export(args: argparse.Namespace) -> int:
    """``rosellm export``; the exit code."""
    from rosellm.rosetrainer.export import run

    return run(args)
