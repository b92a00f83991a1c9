"""The demo model on a real server, for clients that people call it with.

`make test-clients` installs these clients; a test whose client is not there is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Server, start_server

# Before a client is imported: it asks nobody but our server.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false")


@pytest.fixture(scope="session")
def demo() -> Iterator[Server]:
    running = start_server(model="rosellm-demo")
    yield running
    assert running.stop() == 0
