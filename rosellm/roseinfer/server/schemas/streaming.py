"""Request fields that say whether and how an answer is streamed."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import Body, NoEffect


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool | None = Field(
        default=None, description="A last chunk with the whole request's usage; null before it."
    )
    continuous_usage_stats: bool | None = Field(
        default=None,
        description="The usage so far in every chunk; only with `include_usage`.",
    )
    include_obfuscation: NoEffect[bool] = Field(
        default=None, description="Chunks carry no padding against measuring their sizes."
    )

    @field_validator("continuous_usage_stats")
    @classmethod
    def _only_with_usage(cls, continuous: bool | None, info: ValidationInfo) -> bool | None:
        if continuous and not info.data.get("include_usage"):
            raise PydanticCustomError("needs_usage", "is only allowed when include_usage is true")
        return continuous


class StreamFields(Body):
    """``stream`` and its options."""

    stream: bool | None = Field(
        default=None, description="Server-sent events instead of one body; false by default."
    )
    stream_options: StreamOptions | None = Field(
        default=None, description="What the stream carries beside the answer; only with `stream`."
    )

    @field_validator("stream_options")
    @classmethod
    def _only_with_stream(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise PydanticCustomError("needs_stream", "is only allowed when stream is true")
        return options

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)
