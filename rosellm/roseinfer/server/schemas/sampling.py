"""Request fields that say how tokens are chosen and when an answer ends."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from rosellm.roseinfer.server.schemas.fields import Body, one_or_list

INT32 = 2**31
INT64 = 2**63
MAX_CHOICES = 128
MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # a held-back stop string is compared at every token

TokenId = Annotated[int, Field(ge=0, lt=INT32)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopStrings = Annotated[list[StopString], Field(min_length=1, max_length=MAX_STOPS)]
Stop = Annotated[
    Annotated[StopString, Tag("<one>")] | Annotated[StopStrings, Tag("<list>")],
    Discriminator(one_or_list),
]


class SamplingFields(Body):
    """Ranges are those of OpenAI's specification; names beyond it are vLLM's."""

    max_tokens: int | None = Field(
        default=None,
        ge=0,
        lt=INT64,
        description="Longest answer: by default 16 tokens in a completion, the rest of the context"
        " in a chat. 0 computes the prompt and nothing else.",
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 takes the likeliest token each time."
    )
    top_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Sample from the likeliest tokens that hold this much probability together.",
    )
    top_k: int | None = Field(
        default=None,
        ge=-1,
        description="Sample from so many of the likeliest tokens; -1 and 0 consider every token.",
    )
    min_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Leave out tokens below this share of the likeliest one's probability.",
    )
    presence_penalty: Penalty | None = Field(
        default=None, description="Lowers tokens that the answer has already."
    )
    frequency_penalty: Penalty | None = Field(
        default=None, description="Lowers tokens by how often the answer has them already."
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        description="Divides the scores of tokens that prompt or answer have; 1 is none.",
    )
    logit_bias: dict[str, Bias] | None = Field(
        default=None, description="Token ids, and what is added to their scores."
    )
    seed: int | None = Field(
        default=None, ge=-INT64, lt=INT64, description="The same seed gives the same answer."
    )
    stop: Stop | None = Field(
        default=None, description="Texts before which the answer ends, at most 4."
    )
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        default=None, description="Tokens at which the answer ends."
    )
    include_stop_str_in_output: bool | None = Field(
        default=None,
        description="Show the stop string, or the text of the stop token, that ended the answer.",
    )
    ignore_eos: bool | None = Field(
        default=None, description="Go on past the end-of-sequence token."
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="False shows special tokens by their names in the text."
    )
    min_tokens: int | None = Field(
        default=None,
        ge=0,
        lt=INT64,
        description="Tokens before which neither a stop token nor a stop string ends the answer.",
    )
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Number of answers; 1.")
    priority: int | None = Field(
        default=None,
        ge=-INT32,
        lt=INT32,
        description="Lower is served earlier; waiting counts too.",
    )
    cache_salt: str | None = Field(
        default=None, description="Cached prefixes are shared only between equal salts."
    )

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
