"""What tests of a room may do that no other test may: who starts programs, and which."""

from __future__ import annotations

import re

from tests.audit.rules import PYTHON

OPENAI = ("uname",)  # its client asks what machine it is on
COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang", "ld", "nm", "objdump", "ldd")

EXPECTED: dict[str, tuple[str, ...]] = {
    # servers, engines and commands, as people and supervisors start them
    "tests/bench/": (PYTHON,),
    "tests/clients/": (PYTHON, *OPENAI),
    "tests/commands/": (PYTHON, "sh"),
    "tests/deploy/": (PYTHON, "systemd-analyze"),
    "tests/docs/": (PYTHON, *OPENAI, "bash", "sh"),
    "tests/e2e/": (PYTHON, *OPENAI, "rosellm", "make", "git", "sh", "curl", "192.0.2.1"),
    "tests/engine/test_client.py": (PYTHON,),
    "tests/faults/": (PYTHON, *OPENAI),
    "tests/hub/": (PYTHON,),
    # grammars are checked in processes that can be killed
    "tests/fuzz/": (PYTHON,),
    "tests/library/": (PYTHON,),
    "tests/server/": (PYTHON,),
    # what a fresh interpreter imports, or takes of memory
    "tests/models/test_encoder.py": (PYTHON, *OPENAI),
    "tests/models/test_scores.py": (PYTHON,),
    "tests/quant/": (PYTHON,),
    "tests/test_import_cost.py": (PYTHON,),
    "tests/text/test_tokenizer.py": (PYTHON,),
    # native code is compiled, looked at, and run in programs of its own
    "tests/kernels/cpu/": (
        PYTHON,
        *COMPILERS,
        "a compiler",
        "false",
        "sh",
        "fork",
        "pool",
        "setarch",
    ),
    # programs that compile for cards, which run the compiler's tools
    "tests/kernels/triton/test_compiled.py": (PYTHON,),
    "tests/kernels/triton/test_compile_products.py": (PYTHON,),
    # a corpus is made by several processes, which hand their parts over pickled
    "tests/trainer/": (PYTHON, "unpickling"),
}


def expected(test: str) -> frozenset[str]:
    """What the test with this id may do."""
    file = re.split(r"::", test, maxsplit=1)[0]
    return frozenset(
        each for room, may in EXPECTED.items() if file.startswith(room) for each in may
    )
