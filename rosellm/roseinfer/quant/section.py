"""What config.json says of a quantised model. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rosellm.roseinfer.errors import ModelError, shown
from rosellm.roseinfer.quant.formats import Format, Recipe

SECTION = "rosellm_quantization"
VERSION = 1
"""Of the names, and of what their bits mean; a folder of another version is refused."""


class Section(msgspec.Struct, forbid_unknown_fields=True):
    """The section ``rosellm_quantization``.

    Attributes:
        dtype: of the weights that the model was made from, such as "bfloat16".
    """

    version: int
    dtype: str
    layers: Format | None
    head: Format | None

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.layers, self.head)


def read_section(config: Mapping[str, Any], where: str) -> Section | None:
    """The section, or None where there is none. Raises ModelError, naming the file."""
    values = config.get(SECTION)
    if values is None:
        return None
    if isinstance(values, dict) and values.get("version") != VERSION:
        raise ModelError(
            f"{where}: quantised by another version of rosellm (form "
            f"{shown(repr(values.get('version')))}, this one reads {VERSION}); quantise it again"
        )
    try:
        return msgspec.convert(values, Section)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {SECTION} is damaged: {shown(str(error))}") from None


def section(recipe: Recipe, dtype: str) -> dict[str, Any]:
    """The section as JSON has it."""
    return {SECTION: msgspec.to_builtins(Section(VERSION, dtype, recipe.layers, recipe.head))}
