"""Put into an engine's path: it dies a few tokens after it was given a request with one seed.

Python imports this by its name, in every process that has this folder in its path.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

SEED, TOKENS = 666, 5


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

        run(core, inbox, decoded, emitted)

    loop.run_engine = run_engine


if "rosellm.roseinfer.engine.process" in sys.orig_argv:
    _poison()
