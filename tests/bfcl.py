"""The tools of the Berkeley Function Calling Leaderboard, as far as a checkout has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "bfcl"
NAMES = {"dict": "object", "float": "number", "tuple": "array"}  # its types in JSON Schema's words


def tools() -> Iterator[dict[str, Any]]:
    """Every function, in OpenAI's form."""
    for path in sorted(FOLDER.glob("BFCL_*.json")):
        for line in path.read_text().splitlines():
            for function in json.loads(line)["function"]:
                mapped = {**function, "parameters": schema(function["parameters"])}
                yield {"type": "function", "function": mapped}


def schema(given: Any) -> Any:
    """The same with JSON Schema's types; ``any`` is no type at all."""
    if isinstance(given, list):
        return [schema(each) for each in given]
    if not isinstance(given, dict):
        return given
    mapped = {key: schema(value) for key, value in given.items()}
    kind = mapped.get("type")
    if kind == "any":
        del mapped["type"]
    elif isinstance(kind, str):
        mapped["type"] = NAMES.get(kind, kind)
    return mapped
