"""A prompt, or several, as text or as token ids."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field


def prompt_tag(prompt: Any) -> str:
    """Discriminator of a union of the four forms, by the tags below.

    With it a complaint is about the form that was sent, not about each one that was not.
    """
    if not isinstance(prompt, list):
        return "<text>"
    first = prompt[0] if prompt else ""
    return {int: "<ids>", list: "<id lists>"}.get(type(first), "<texts>")


TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]
"""One that is wrong is enough: to list a million takes seconds."""


def one_by_one(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """The prompts, each a text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)
