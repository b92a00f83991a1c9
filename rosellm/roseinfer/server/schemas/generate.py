"""The request of ``POST /generate``, the seed's own route."""

from __future__ import annotations

from pydantic import Field

from rosellm.roseinfer.server.schemas.fields import TIMEOUT, Body, Timeout
from rosellm.roseinfer.server.schemas.sampling import INT64, SamplingFields


class GenerateRequest(Body):
    """A prompt to continue."""

    prompt: str = Field(description="The text to continue.")
    max_new_tokens: int | None = Field(
        default=None, ge=1, lt=INT64, description="Longest answer, in tokens; 64."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 takes the likeliest token each time."
    )
    top_k: int | None = Field(
        default=None, ge=-1, description="Sample from so many of the likeliest tokens."
    )
    top_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Sample from the likeliest tokens that hold this much probability together.",
    )
    stop_on_eos: bool | None = Field(
        default=None, description="End the answer at the end-of-sequence token."
    )
    do_sample: bool | None = Field(
        default=None, description="Sample, or take the likeliest token each time."
    )
    timeout: Timeout | None = Field(default=None, description=TIMEOUT)
    stream: bool | None = Field(default=None, description="Plain text as it comes.")

    @property
    def sampling(self) -> SamplingFields:
        """The same in the names of the other routes."""
        return SamplingFields(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            ignore_eos=None if self.stop_on_eos is None else not self.stop_on_eos,
        )
