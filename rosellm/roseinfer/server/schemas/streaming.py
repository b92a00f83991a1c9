"""Request fields that say whether and how an answer is streamed."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import Body, NoEffect


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: NoEffect[bool] = None


class StreamFields(Body):
    """``stream`` and its options."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

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
