"""Clients that people call our server with, beside the fixture ``demo``.

`make test-clients` installs these clients; a test whose client is not there is skipped.
"""

from __future__ import annotations

import os

# Before a client is imported: it asks nobody but our server.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false")
