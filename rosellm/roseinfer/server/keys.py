"""The API keys that a server knows: who may ask, and how much each.

Keys come from a file and from the environment, never from the command line, where every user of
the machine can read them. What is kept of a key is its hash. It knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rosellm.roseinfer.errors import ConfigError, did_you_mean, shown
from rosellm.roseinfer.toml_file import read_toml

KEY_VARIABLE = "ROSELLM_API_KEY"
DEFAULT_NAME = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
MOST_LIMIT = 10**12
MOST_SHARE = 100


@dataclass(frozen=True)
class KeyLimits:
    """What one key may take; None is without limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Key:
    """
    Attributes:
        name: who asks with it; the tenant of its requests.
        digest: SHA-256 of the key.
        share: of the engine's time, beside others who want it too; most have 1.
    """

    name: str
    digest: bytes
    limits: KeyLimits = KeyLimits()
    share: float = 1.0


LIMITS = tuple(field.name for field in fields(KeyLimits))
FIELDS = ("key", "sha256", *LIMITS, "share")


class Keys:
    """All keys of one server; without any, nobody is asked for one."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, secret: str | None) -> Keys:
        """One key without limits, or none where it is empty."""
        return cls([Key(DEFAULT_NAME, digest(secret.encode()))] if secret else ())

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def find(self, sent: bytes) -> Key | None:
        """The key that was sent, in a time that does not tell which it is, nor how near."""
        wanted, found = digest(sent), None
        for key in self._keys:
            if hmac.compare_digest(wanted, key.digest):
                found = key
        return found


def digest(key: bytes) -> bytes:
    """What is kept of a key. A slow hash would protect guessable keys alone."""
    return hashlib.sha256(key).digest()


def load_keys(file: str | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of a file and the one of ``ROSELLM_API_KEY``, which is called "default".

    Raises:
        ConfigError: one line that names the file, the key and the field, and never holds a key.
    """
    found = [] if file is None else _read(file)
    if secret := environment.get(KEY_VARIABLE):
        _check_secret(KEY_VARIABLE, secret)
        found.append(Key(DEFAULT_NAME, digest(secret.encode(errors="surrogateescape"))))
    _check_distinct(found, file)
    return Keys(found)


def exposure(file: str) -> str | None:
    """What to warn about where others than its owner and group can read or change a file."""
    mode = stat.S_IMODE(Path(file).expanduser().stat().st_mode)
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    return f"{shown(file)}: other users of this machine can read or change it (chmod 600)"


def _read(file: str) -> list[Key]:
    tables = read_toml(file, "file of API keys")
    where = shown(file)
    for name in tables:
        if name != "keys":
            raise ConfigError(
                f"{where}: {shown(name)!r} is not known; a key is a table [keys.NAME]"
            )
    keys = tables.get("keys")
    if not isinstance(keys, dict) or not keys:
        raise ConfigError(f"{where}: it holds no key; each is a table [keys.NAME]")
    return [_key(where, name, table) for name, table in keys.items()]


def _key(where: str, name: str, table: Any) -> Key:
    spoken = f"{where}: keys.{shown(name)}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{spoken}: a name has 1 to 64 letters, digits, '_', '-' and '.'")
    if not isinstance(table, dict):
        raise ConfigError(f"{spoken} must be a table: [keys.{name}]")
    for field in table:
        if field not in FIELDS:
            hint = did_you_mean(field, FIELDS)
            raise ConfigError(f"{spoken}: unknown field {shown(field)!r}{hint}")
    limits = {
        field: _limit(f"{spoken}.{field}", table[field]) for field in LIMITS if field in table
    }
    share = _share(f"{spoken}.share", table.get("share", 1))
    return Key(name, _digest_of(spoken, table), KeyLimits(**limits), share)


def _digest_of(spoken: str, table: Mapping[str, Any]) -> bytes:
    if ("key" in table) == ("sha256" in table):
        raise ConfigError(f"{spoken}: either key or sha256 is needed")
    if "key" in table:
        _check_secret(f"{spoken}.key", table["key"])
        return digest(table["key"].encode())
    if not isinstance(table["sha256"], str) or not DIGEST.fullmatch(table["sha256"]):
        raise ConfigError(
            f"{spoken}.sha256 must be 64 hexadecimal digits: printf %s KEY | sha256sum"
        )
    return bytes.fromhex(table["sha256"])


def _check_secret(spoken: str, secret: Any) -> None:
    if not isinstance(secret, str) or not secret:
        raise ConfigError(f"{spoken} must be a text that is not empty")
    if secret != secret.strip() or any(char < " " or char == "\x7f" for char in secret):
        raise ConfigError(f"{spoken} has a space at an end, or a control character in it")


def _limit(spoken: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_LIMIT:
        raise ConfigError(f"{spoken} must be an integer from 1 on; left out, there is no limit")
    return value


def _share(spoken: str, value: Any) -> float:
    if type(value) not in (int, float) or not 1 / MOST_SHARE <= value <= MOST_SHARE:
        raise ConfigError(f"{spoken} must be a number from {1 / MOST_SHARE:g} to {MOST_SHARE}")
    return float(value)


def _check_distinct(keys: Iterable[Key], file: str | None) -> None:
    names: dict[bytes, str] = {}
    seen: set[str] = set()
    where = "" if file is None else f"{shown(file)}: "
    for key in keys:
        if key.name in seen:  # two tables of one name are no TOML
            raise ConfigError(
                f"{where}keys.{key.name}: {KEY_VARIABLE} is set too, and has that name"
            )
        if key.digest in names:
            raise ConfigError(f"{where}keys.{key.name} is the same key as {names[key.digest]}")
        names[key.digest] = key.name
        seen.add(key.name)
