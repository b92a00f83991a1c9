"""docs/api.md says what the registry of parameters says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    writer = runpy.run_path(str(ROOT / "scripts" / "write_api.py"))
    found = (ROOT / "docs" / "api.md").read_text()
    assert found == writer["page"](), "run: python scripts/write_api.py"
