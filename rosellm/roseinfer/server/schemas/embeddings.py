"""The request of ``POST /v1/embeddings``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from rosellm.roseinfer.server.schemas.fields import TIMEOUT, Body, NoEffect, Timeout
from rosellm.roseinfer.server.schemas.prompt import TokenIds, one_by_one, prompt_tag

MAX_INPUTS = 2048

Text = Annotated[str, Field(min_length=1)]
Input = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[
        list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("<texts>")
    ]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[
        list[TokenIds],
        Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True),
        Tag("<id lists>"),
    ],
    Discriminator(prompt_tag),
]


class EmbeddingRequest(Body):
    """One or several inputs, of each of which a vector is asked."""

    model: str = Field(description="Name of the served model, see `GET /v1/models`.")
    input: Input = Field(description="A text, several, or token ids.")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="Numbers, which is the default, or little-endian fp32 as base64."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="The vector's first so many numbers, made unit length."
    )
    timeout: Timeout | None = Field(default=None, description=TIMEOUT)
    user: NoEffect[str] = Field(
        default=None, description="A server of one's own keeps no such record."
    )

    @property
    def inputs(self) -> list[str | list[int]]:
        return one_by_one(self.input)
