"""TOML files that people write: read with a bound, and every complaint names the file.

It knows nothing of what they should hold.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import ConfigError, shown

MOST_BYTES = 1 << 20


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        what: how to call such a file in a complaint.

    Raises:
        ConfigError: there is none, it cannot be read, or it is not TOML.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{shown(str(file))}: no such {what}") from None
    except (OSError, ValueError) as error:
        raise _unreadable(file, getattr(error, "strerror", None) or str(error)) from None
    if len(text) > MOST_BYTES:
        raise _unreadable(file, f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, str(error)) from None


def _unreadable(file: Path, why: str) -> ConfigError:
    return ConfigError(f"{shown(str(file))}: cannot be read as TOML: {shown(why)}")
