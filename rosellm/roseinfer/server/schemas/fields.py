"""What happens to a request field: it is applied, rejected, or accepted without effect.

A field is applied unless its type says otherwise, with ``Rejected`` or ``NoEffect``: the registry
(``parameters.py``) reads these types. A field that is in no schema is refused (``extra="forbid"``),
so nothing that a client sends is ever dropped in silence.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, TypeVar

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

MOST_OBJECTS = 8192
"""In one list: checking them, or complaining of each, holds up the event loop. Lists of plain
values complain of the first one only (``fail_fast``), so they may be long.
"""


def one_or_list(value: Any) -> str:
    """Discriminator of a union of one thing and a list, by the tags ``<one>`` and ``<list>``.

    With it a complaint is about the form that was sent, not about each one that was not.
    """
    return "<list>" if isinstance(value, list) else "<one>"


class Body(BaseModel):
    """Base of all request schemas: exact types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Outcome(Enum):
    """What a value beyond the default comes to."""

    APPLIED = "applied"
    REJECTED = "rejected"
    NO_EFFECT = "no effect"


def _refuse_others(value: Any, accept: ValidatorFunctionWrapHandler) -> Any:
    try:
        return accept(value)
    except ValidationError:
        raise PydanticCustomError(
            "rejected", "this value is not supported, only null and the default are"
        ) from None


NoEffect = Annotated[T | None, Outcome.NO_EFFECT]
"""A property that changes nothing here: checked for its type, then ignored."""

Rejected = Annotated[T | None, Outcome.REJECTED, WrapValidator(_refuse_others)]
"""A property whose only accepted values are null and ``T``, its specification default.

What makes it work replaces this type by the property's own.
"""

Timeout = Annotated[float, Field(gt=0)]
TIMEOUT = (
    "Seconds that the request may take. Then it ends with a 504 or, in mid-stream, with an error"
    " event."
)

Empty = Annotated[list[Any], Field(max_length=0)]
