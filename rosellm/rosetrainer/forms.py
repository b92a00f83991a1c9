"""Which tokens are forms of one stem: ``the``, ``The``, ``THE``, each after a space or not.

Read from a ``tokenizer.json`` as it is; it knows nothing of models.
"""

from __future__ import annotations

import json

SPACE = "Ġ"
"""How a byte-level vocabulary writes the space."""

FORMS = 8
"""Lower case, Capitalised, one capital letter, UPPER CASE; each after a space or not."""


def stems_and_forms(tokenizer: str) -> tuple[list[int], list[int]]:
    """For every id of a byte-level tokenizer, the number of its stem and that of its form."""
    content = json.loads(tokenizer)
    names: dict[str, int] = content["model"]["vocab"]
    names |= {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    size = 1 + max(names.values())
    by_id = dict(zip(names.values(), names, strict=True))
    stems: dict[str, int] = {}
    found, forms = [0] * size, [0] * size
    for at in range(size):
        name = by_id.get(at, "")
        stem = name.removeprefix(SPACE) or name
        spaced = stem != name
        found[at] = stems.setdefault(stem.lower(), len(stems))
        forms[at] = _case(stem) + 4 * spaced
    return found, forms


def _case(stem: str) -> int:
    if not (stem.isascii() and stem.isalpha()) or stem.islower():
        return 0
    if len(stem) == 1:
        return 2
    return 3 if stem.isupper() else 1
