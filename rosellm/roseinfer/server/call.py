"""What is known of one HTTP request beside its typed body."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from rosellm.roseinfer.server.limits import UNLIMITED, Account
from rosellm.roseinfer.server.timeline import Timeline


@dataclass(frozen=True)
class Call:
    """
    Attributes:
        id: as the log and ``X-Request-Id`` name it.
        path: where it was posted to.
        body: its JSON, as it was sent.
        warnings: a sentence for each field that was ignored, see ``--unknown-parameters``.
        timeline: where its time goes.
        account: of who asks.
        arrived: when it was there as a whole, by ``time.monotonic``.
    """

    id: str
    path: str
    body: Any
    warnings: tuple[str, ...] = ()
    timeline: Timeline = field(default_factory=Timeline)
    account: Account = UNLIMITED
    arrived: float = field(default_factory=time.monotonic)


async def _called(request: Request) -> Call:  # async: FastAPI runs others in a thread
    state = request.state
    return Call(
        id=state.request_id,
        path=request.scope["path"],
        body=getattr(state, "sent", None),
        warnings=getattr(state, "warnings", ()),
        timeline=state.timeline,
        account=getattr(state, "account", UNLIMITED),
    )


Called = Annotated[Call, Depends(_called)]
