"""Hostile versions of a model's files: any seed gives the same one again.

Knows files as bytes and as JSON, not what a model is.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**400,
    0.5, -1.5, 1e308, 1e-308, float("nan"), float("inf"), float("-inf"), -0.0,
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "x" * 100_000, "\x00", "\n", "../../etc/passwd", "/etc/passwd", "é" * 50, "\ufffd",
    "\U0001f600", "{{", "F32", "I8", "model.norm.weight", "__proto__", "default", "none",
]  # fmt: skip
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", None]]
LONE_SURROGATE = '"\\ud800"'
DEEP = ["[" * 500 + "]" * 500, "[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000]

SNIPPETS = [
    "{% for i in range(99999) %}", "{% endfor %}", "{{ 'a' * 10**10 }}", "{% macro f() %}",
    "{% endmacro %}", "{{ f() }}", "{{ ''.__class__ }}", "{% include 'x' %}", "{{", "}}", "{%",
    "%}",
    "{% if x %}", "{% endif %}", "{{ messages|tojson }}", "{{ messages[99].content }}", "{{ 1/0 }}",
    "{{ raise_exception('no') }}", "{% set messages = 3 %}", "{% break %}", "\x00", "{#", "#}",
    "{% generation %}", "{{ [" + "[" * 400, "{{ '%d' % 'x' }}", "{{ messages | sort }}",
]  # fmt: skip


class Mutator:
    """One hostile version, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def file(self, path: Path) -> None:
        """Change a file in a way that suits it."""
        ways = {
            ".json": [self.json, self.json, self.json, self.bytes],
            ".safetensors": [self.safetensors, self.safetensors, self.bytes],
            ".jinja": [self.template, self.template, self.bytes],
        }
        way = self.random.choice(ways.get(path.suffix, [self.bytes]))
        changed = way(path.read_bytes())
        path.unlink()  # a mapping of the old file stays whole
        path.write_bytes(changed)

    # -- bytes -------------------------------------------------------------------------------

    def bytes(self, content: bytes) -> bytes:
        data = bytearray(content)
        for _ in range(self.random.choice([1, 1, 2, 5])):
            self._change_bytes(data)
        return bytes(data)

    def _change_bytes(self, data: bytearray) -> None:
        r, size = self.random, len(data)
        at = r.choice([r.randrange(size + 1), r.randrange(min(size, 64) + 1), max(size - 64, 0)])
        length = r.choice([1, 2, 8, 64, 1000])
        action = r.randrange(7)
        if action == 0 and size:
            place = min(at, size - 1)
            data[place] ^= 1 << r.randrange(8)
        elif action == 1:
            del data[at:]
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = r.randbytes(length)
        elif action == 4:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif action == 5:
            data[at : at + 8] = struct.pack("<Q", r.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]))
        else:
            data[at:at] = data[max(at - length, 0) : at] * r.choice([1, 2, 50])

    # -- JSON --------------------------------------------------------------------------------

    def json(self, content: bytes) -> bytes:
        try:
            value = json.loads(content)
        except ValueError:
            return self.bytes(content)
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            value = self.value(value)
        text = json.dumps(value, ensure_ascii=self.random.random() < 0.5)
        if self.random.random() < 0.1:  # what dumps would not write
            text = self._unwritable(text)
        return text.encode("utf-8", "surrogatepass")

    def _unwritable(self, text: str) -> str:
        raw = self.random.choice([LONE_SURROGATE, *DEEP, "1e999", "-", "00", "'a'", "tru"])
        at = text.find(":", self.random.randrange(len(text) + 1)) + 1
        end = min((p for p in (text.find(",", at), text.find("}", at)) if p >= 0), default=at)
        return text[:at] + raw + text[end:]

    def value(self, value: Any) -> Any:
        """The same value with one place in it changed."""
        places = list(_places(value))
        if not places:
            return self.hostile()
        holder, key = self.random.choice(places)
        action = self.random.randrange(6)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[self.random.choice(TEXTS)] = holder.pop(key)
        elif action == 2 and isinstance(holder, list):
            holder[key : key + 1] = [holder[key]] * self.random.choice([0, 2, 300])
        elif action == 3:
            other, name = self.random.choice(places)
            holder[key], other[name] = other[name], holder[key]
            if _is_cyclic(value):
                holder[key] = self.hostile()
        else:
            holder[key] = self.hostile()
        return value if not _is_cyclic(value) else {}

    def hostile(self) -> Any:
        return copy.deepcopy(self.random.choice(self.random.choice([NUMBERS, TEXTS, OTHERS])))

    # -- forms of their own ------------------------------------------------------------------

    def safetensors(self, content: bytes) -> bytes:
        """The header changed as JSON, its length told truly or not."""
        length = int.from_bytes(content[:8], "little")
        header = self.json(content[8 : 8 + length])
        told = len(header)
        if self.random.random() < 0.1:
            told = self.random.choice([0, 1, told - 1, told + 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", told) + header + content[8 + length :]

    def template(self, content: bytes) -> bytes:
        text = content.decode("utf-8", "replace")
        for _ in range(self.random.choice([1, 2, 5])):
            at = self.random.randrange(len(text) + 1)
            text = text[:at] + self.random.choice(SNIPPETS) + text[at:]
        return text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as what holds it and the key there; of long lists, some."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, dict):
            pairs: list[Any] = list(holder.items())[:40]
        elif isinstance(holder, list):
            pairs = list(enumerate(holder[:10]))
        else:
            continue
        for key, inner in pairs:
            yield holder, key
            waiting.append(inner)


def _is_cyclic(value: Any) -> bool:
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False
