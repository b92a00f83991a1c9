"""How many examples a property is tried with: a third by default, all of them by `make test-full`.

Which ones Hypothesis makes differs from run to run, so that the short runs add up too.
"""

from __future__ import annotations

import os

THOROUGH = os.environ.get("TESTS_THOROUGH") == "1"


def examples(count: int) -> int:
    return count if THOROUGH else max(20, count // 3)
