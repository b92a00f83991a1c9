"""``rosellm bench``: its flags. What they start is imported only when it is started."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rosellm.bench.lengths import Lengths, id_range, lengths
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.server import flags

Commands: TypeAlias = "argparse._SubParsersAction[flags.Parser]"


def add_parser(subparsers: Commands) -> None:
    """Add ``bench`` and its two commands; each sets ``run``, which returns an exit code."""
    bench = subparsers.add_parser(
        "bench",
        help="measure a server, or the engine alone",
        description="Measure. The last line of the output is one JSON object.",
        allow_abbrev=False,
    )
    commands = bench.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_offline(commands)


# -- serve -----------------------------------------------------------------------------------


def _add_serve(commands: Commands) -> None:
    command = commands.add_parser(
        "serve",
        help="load on any server that speaks OpenAI's API",
        description="Put load on a server that speaks OpenAI's API, whoever made it, and time it.",
        allow_abbrev=False,
    )
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [options]"
    _add_target(command)
    _add_load(command)
    _add_lengths(command, num_requests=64)
    _add_request(command)
    command.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    from rosellm.bench import serve

    return serve.run(serve.Settings(**_named(serve.Settings, vars(args))))


def _add_target(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("Server")
    group.add_argument(
        "--base-url",
        metavar="URL",
        default="http://127.0.0.1:8000",
        help="without a path, /v1 is added (default: %(default)s)",
    )
    group.add_argument(
        "--model", metavar="NAME", help="default: the first that the server's /models lists"
    )
    group.add_argument(
        "--endpoint",
        choices=("chat", "completions"),
        default="chat",
        help="what to call (default: %(default)s)",
    )
    group.add_argument(
        "--api-key-env",
        metavar="NAME",
        default="ROSELLM_API_KEY",
        help="environment variable that holds the API key, if any (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=_positive,
        metavar="S",
        default=600.0,
        help="a request without a whole answer by then has failed (default: 600)",
    )


def _add_load(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("Load")
    group.add_argument(
        "--concurrency",
        type=_count,
        metavar="N",
        help="closed loop: so many requests are open at any time (default, without a trace: 1)",
    )
    group.add_argument(
        "--rate",
        type=_positive,
        metavar="X",
        help="open loop: requests arrive at random (Poisson), so many a second",
    )
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="lengths from a recorded trace, .csv like Azure's or .jsonl like Mooncake's, and its"
        " arrival times unless --concurrency or --rate is given",
    )


def _add_request(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("Requests")
    group.add_argument(
        "--token-ids",
        type=id_range,
        metavar="LOW:HIGH",
        help="prompts of random token ids of this range instead of words (completions only)",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="ask for full-length answers; a field that OpenAI's API does not have",
    )
    group.add_argument(
        "--temperature", type=_not_negative, metavar="X", default=0.0, help="default: greedy"
    )


# -- offline ---------------------------------------------------------------------------------


def _add_offline(commands: Commands) -> None:
    command = commands.add_parser(
        "offline",
        help="the engine alone, in this process",
        description="Run the engine in this process, without HTTP, on random prompts.",
        allow_abbrev=False,
    )
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [MODEL] [options]"
    flags.add_model(command)
    _add_lengths(command, num_requests=128)
    flags.add_group(command, ModelConfig, without=("tokenizer", "chat_template"))
    flags.add_group(command, CacheConfig)
    flags.add_group(command, SchedulerConfig)
    command.set_defaults(run=_offline)


def _offline(args: argparse.Namespace) -> int:
    from rosellm.bench import offline

    given = vars(args)
    config = EngineConfig(
        flags.model_config(given),
        flags.build(CacheConfig, given),
        flags.build(SchedulerConfig, given),
    )
    return offline.run(config, offline.Load(**_named(offline.Load, given)))


# -- both ------------------------------------------------------------------------------------


def _add_lengths(command: argparse.ArgumentParser, num_requests: int) -> None:
    group = command.add_argument_group("Size")
    group.add_argument(
        "--num-requests",
        type=_count,
        metavar="N",
        default=num_requests,
        help="requests in all; of a trace, its first ones (default: %(default)s)",
    )
    for name, default in (("input", 256), ("output", 64)):
        group.add_argument(
            f"--{name}-tokens",
            type=lengths,
            metavar="N|LOW:HIGH",
            default=Lengths(default, default),
            help=f"{name} tokens of a request, fixed or drawn (default: %(default)s)",
        )
    group.add_argument("--seed", type=int, metavar="N", default=0, help="of all that is random")


def _named(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in dataclasses.fields(kind)}


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return value
