"""The kinds of request fields: applied, without effect, and not built yet.

A field that is in no schema is refused (``extra="forbid"``), so nothing that a
client sends is ever dropped in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

T = TypeVar("T")


def one_or_list(value: Any) -> str:
    """Discriminator of a union of one thing and a list, by the tags ``<one>`` and ``<list>``.

    With it a complaint is about the form that was sent, not about each one that was not.
    """
    return "<list>" if isinstance(value, list) else "<one>"


class Body(BaseModel):
    """Base of all request schemas: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _refuse_others(value: Any, accept: ValidatorFunctionWrapHandler) -> Any:
    try:
        return accept(value)
    except ValidationError:
        raise PydanticCustomError("not_built", "this value is not supported yet") from None


NoEffect = Annotated[T | None, Field(description="Accepted without effect.")]
"""OpenAI's bookkeeping: checked for its type, then ignored."""

NotBuilt = Annotated[
    T | None,
    WrapValidator(_refuse_others),
    Field(description="Not supported yet: only null and the default value are accepted."),
]
"""A property whose only accepted values are null and ``T``, its specification default."""

Empty = Annotated[list[Any], Field(max_length=0)]


class TextFormat(Body):
    """``response_format`` as it is by default."""

    type: Literal["text"]


class PromptCacheOptions(Body):
    """``prompt_cache_options`` as they are by default."""

    mode: Literal["implicit"] = "implicit"
    ttl: Literal["30m"] = "30m"
