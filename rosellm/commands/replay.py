"""``rosellm replay``: answers logged requests again, one at a time, and compares the tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rosellm.commands import local
from rosellm.commands.console import exit_code, note
from rosellm.roseinfer.errors import ConfigError, RequestError
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from rosellm.roseinfer.llm import LLM
    from rosellm.roseinfer.server.journal import Build, Logged
    from rosellm.roseinfer.server.service import Service

EXAMPLES = """\
A line goes to stdout for each request: its id, and "same" or where its tokens differ.

exit codes: 0 if all are the same, 1 if not, 2 after an error, 130 after Ctrl-C

examples:
  rosellm serve my-llama --log-requests requests.jsonl
  rosellm replay requests.jsonl
  rosellm replay requests.jsonl --id req_6f0c
  rosellm replay requests.jsonl other/my-llama --dtype float32
"""


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm replay``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s FILE [MODEL] [options]"
    command.epilog = EXAMPLES
    command.add_argument("file", metavar="FILE", help="what --log-requests wrote")
    command.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default=argparse.SUPPRESS,
        help="the model, if not the one that was served; so is every setting",
    )
    command.add_argument("--id", metavar="ID", help="only requests whose ids begin like this")
    local.add_flags(command)


def run(args: argparse.Namespace) -> int:
    """Replay a log. Returns the exit code."""
    given = vars(args)
    differing = 0

    def program() -> None:
        nonlocal differing
        logged = list(read(given["file"], given["id"] or ""))
        if not logged:
            raise ConfigError(f"{given['file']}: no logged request to replay")
        for build, requests in logged:
            differing += _replay(build, requests, given)

    return exit_code(program) or (1 if differing else 0)


def read(path: str, prefix: str = "") -> Iterator[tuple[Build, list[Logged]]]:
    """The requests of a log, with the build that answered them.

    Args:
        prefix: of the ids that are wanted.

    Raises:
        ConfigError: the file cannot be read, or is no such log.
    """
    from rosellm.roseinfer.server.journal import Build

    build: Build | None = None
    requests: list[Logged] = []
    for number, line in enumerate(_lines(path), start=1):
        if isinstance(line, Build):
            if build and requests:
                yield build, requests
            build, requests = line, []
        elif build is None:
            raise ConfigError(f"{path}, line {number}: a request before any line of its build")
        elif line.id.startswith(prefix) and any(each.token_ids for each in line.choices):
            requests.append(line)
    if build and requests:
        yield build, requests


def _lines(path: str) -> Iterator[Build | Logged]:
    from rosellm.roseinfer.server.journal import decode_line

    try:
        lines = Path(path).expanduser().read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            yield decode_line(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                note(f"{path}, line {number}, is incomplete and left out")
                return
            raise ConfigError(f"{path}, line {number}: no logged request: {error}") from None


def _replay(build: Build, requests: Sequence[Logged], given: Mapping[str, Any]) -> int:
    """Answer them again. Returns how many of the answers differ."""
    with closing(_load(build, given)) as llm:
        now = llm.service.ready.fingerprint
        if now != build.fingerprint:
            note(f"this is {now}, the log is of {build.fingerprint}: tokens may differ")
        found = [_compared(llm, each) for each in requests]
    same = sum(found)
    note(f"{same} of {len(found)} requests gave the same tokens")
    return len(found) - same


def _load(build: Build, given: Mapping[str, Any]) -> LLM:
    """The engine as it was, but for what the command line says."""
    from rosellm.roseinfer.llm import LLM

    logged: dict[str, Any] = {}
    for part in asdict(build.engine).values():
        logged |= part
    return LLM(**{**logged, **local.given(given)})


def _compared(llm: LLM, logged: Logged) -> bool:
    """Whether a request's answer is the same; says so on stdout."""
    try:
        came = llm.loop.run(answered(llm.service, logged))
    except RequestError as error:
        print(f"{logged.id}: refused: {error}", flush=True)
        return False
    differences = list(different(logged, came))
    print(f"{logged.id}: {'; '.join(differences) or 'same'}", flush=True)
    return not differences


async def answered(service: Service, logged: Logged) -> list[list[int]]:
    """The token ids of each choice, made anew."""
    from rosellm.roseinfer.server.collect import Tally, collect

    answer = await service.pipeline.generate(logged.jobs)
    return [whole.ids for whole in await collect(answer, Tally.of(logged.jobs))]


def different(logged: Logged, came: Sequence[Sequence[int]]) -> Iterator[str]:
    """Where choices differ from what was logged, of which a client may not have seen the end."""
    for index, (choice, ids) in enumerate(zip(logged.choices, came, strict=True)):
        before = choice.token_ids
        now = list(ids) if choice.finish_reason else list(ids[: len(before)])
        if now != before:
            yield f"choice {index} differs from token {_common(before, now)} on"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin alike with."""
    for at, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return at
    return min(len(one), len(other))
