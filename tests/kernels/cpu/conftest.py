"""The native kernels, built anew if a source has changed; without a compiler, nothing is tested."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rosellm.roseinfer.kernels.cpu import build
from rosellm.roseinfer.kernels.cpu.library import PATH_VARIABLE, Library, load


@pytest.fixture(scope="session")
def library() -> Library:
    """Return the loaded kernels, with the threads that the environment says."""
    if PATH_VARIABLE not in os.environ and not build.up_to_date() and build.compiler():
        build.build()
    loaded = load()
    if not isinstance(loaded, Library):
        pytest.skip(loaded.reason)
    return loaded


@pytest.fixture(params=list(build.LEVELS))
def level(library: Library, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test at each level that this processor has; return the level's name."""
    before = library.level
    if not library.set_level(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.set_level(before)


@pytest.fixture(params=[1, 2, 4])
def threads(library: Library, request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with so many threads; return their number."""
    before = library.threads
    library.set_threads(request.param)
    yield request.param
    library.set_threads(before)
