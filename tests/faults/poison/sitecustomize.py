"""Put into an engine's path: it dies a few tokens after it was given a request with one seed, and
steps fail over the tokens that ``POISON_BUG`` and ``POISON_MEMORY`` name.

Python imports this by its name, in every process that has this folder in its path.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

SEED, TOKENS = 666, 5


class _Failing:
    """A runner whose steps fail over some tokens."""

    def __init__(self, runner: Any, errors: dict[int, Exception]) -> None:
        self._runner = runner
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def execute(self, plan: Any, *more: Any) -> Any:
        for work in plan.work:
            for token in self._errors.keys() & {*work.tokens}:
                raise self._errors[token]
        return self._runner.execute(plan, *more)


def _errors() -> dict[int, Exception]:
    import torch

    found = {"POISON_BUG": RuntimeError("bug"), "POISON_MEMORY": torch.OutOfMemoryError("no room")}
    return {int(os.environ[name]): each for name, each in found.items() if name in os.environ}


def _poison() -> None:
    from rosellm.roseinfer.engine import loop
    from rosellm.roseinfer.messages import Add, Outputs

    run = loop.run_engine
    left: dict[int, int] = {}

    def run_engine(core: Any, inbox: Any, decode: Any, emit: Any) -> None:
        def decoded(item: Any) -> Any:
            message = decode(item)
            if isinstance(message, Add) and message.params.seed == SEED:
                left[message.id] = TOKENS
            return message

        def emitted(outputs: Outputs) -> None:
            for row in outputs.rows:
                if row.id in left:
                    left[row.id] -= len(row.tokens)
                    if left[row.id] <= 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            emit(outputs)

        if errors := _errors():
            core._runner = _Failing(core._runner, errors)
        run(core, inbox, decoded, emitted)

    loop.run_engine = run_engine


if "rosellm.roseinfer.engine.process" in sys.orig_argv:
    _poison()
