"""The API side starts without torch: importing it would cost seconds and hundreds of megabytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers")
API_SIDE = (
    "rosellm",
    "rosellm.cli",
    "rosellm.roseinfer",
    "rosellm.roseinfer.engine.client",
    "rosellm.roseinfer.inference_engine",
    "rosellm.roseinfer.llm.library",
    "rosellm.roseinfer.server",
    "rosellm.roseinfer.server.__main__",
    "rosellm.roseinfer.server.app",
    "rosellm.roseinfer.server.run",
)


def loaded_after(statement: str) -> list[str]:
    """Return which of HEAVY a fresh interpreter holds after the statement."""
    probe = f"{statement}\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_stays_cheap() -> None:
    """All of them in one interpreter, which is quick; each by itself to say whose fault it is."""
    if loaded_after("\n".join(f"import {module}" for module in API_SIDE)):
        assert [module for module in API_SIDE if loaded_after(f"import {module}")] == []
        pytest.fail("together they import what none of them does alone")


@pytest.mark.slow
def test_the_probe_sees_torch() -> None:
    assert loaded_after("import torch") == ["torch"]
