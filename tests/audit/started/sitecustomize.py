"""Python runs this when it starts, in the processes of servers and engines that tests have begun.

The folder is on their ``PYTHONPATH`` (``tests/conftest.py``). What they should not do they cannot,
and it is written down where the test that runs looks for it.
"""

from __future__ import annotations

import os
import sys

_REPORT = os.environ.get("TESTS_AUDIT_REPORT")
_SERVING = ("rosellm.roseinfer.server", "rosellm.roseinfer.engine.process")


def _module() -> str:
    """What ``-m`` names in this process's command line."""
    given = sys.orig_argv
    return given[given.index("-m") + 1] if "-m" in given[:-1] else ""


def _watch(report: str) -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from rules import violation

    sys.path.pop(0)
    expected = frozenset({"python"})  # a server starts its engine, and what checks grammars

    def hook(event: str, args: tuple[object, ...]) -> None:
        found = violation(event, args, expected)
        if found:
            with open(report, "a") as file:
                file.write(f"{_module()} {found}\n")
            raise RuntimeError(f"not expected in a test: it {found}")

    sys.addaudithook(hook)


if _REPORT and _module().startswith(_SERVING):
    _watch(_REPORT)
