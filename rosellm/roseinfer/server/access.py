"""The access log: one line for each request, with what it cost and never with what it said.

``--log-prompts`` is the exception: then the request's body stands in it as it was sent.
"""

from __future__ import annotations

import logging
from typing import Any

from msgspec import to_builtins
from starlette.types import Scope

from rosellm.roseinfer.server.limits import UNLIMITED
from rosellm.roseinfer.server.timeline import Timeline

access_log = logging.getLogger("rosellm.access")


def log_request(scope: Scope, status: int, *, prompts: bool = False) -> None:
    """Write the line of a request that is over.

    Args:
        status: 0 if the client left before there was one.
        prompts: whether its body is part of the line.
    """
    if not access_log.isEnabledFor(logging.INFO):
        return
    fields = _fields(scope, status, prompts)
    access_log.info(_text(fields), extra={"fields": fields})


def _fields(scope: Scope, status: int, prompts: bool) -> dict[str, Any]:
    state = scope["state"]
    timeline: Timeline = state["timeline"]
    fields: dict[str, Any] = {
        "request_id": state["request_id"],
        "client": (scope.get("client") or ("-",))[0],
        "method": scope["method"],
        "path": printable(scope["path"]),
        "status": status or None,
        "seconds": round(timeline.seconds, 6),
        "disconnected": timeline.disconnected,
        "key_name": state.get("account", UNLIMITED).tenant or None,
    }
    if timeline.generates:
        fields |= {
            "prompt_tokens": timeline.prompt_tokens,
            "cached_tokens": timeline.cached_tokens,
            "completion_tokens": timeline.completion_tokens,
            "finish_reasons": sorted(set(timeline.finish_reasons)),
            "timings": to_builtins(timeline.report()),
        }
    if prompts and "sent" in state:
        fields["request"] = state["sent"]
    return fields


def _text(fields: dict[str, Any]) -> str:
    """The same for people, in less."""
    parts = [
        fields["client"],
        fields["method"],
        fields["path"],
        str(fields["status"] or "gone"),
        f"{fields['seconds']:.3f} s",
        fields["request_id"],
    ]
    if fields["key_name"]:
        parts.append(f"key={fields['key_name']}")
    if "timings" in fields:
        parts.append(
            f"tokens={fields['prompt_tokens']}({fields['cached_tokens']} cached)"
            f"+{fields['completion_tokens']}"
        )
        parts.append(",".join(fields["finish_reasons"]) or "unfinished")
    if fields["disconnected"] and fields["status"]:
        parts.append("client left")
    if "request" in fields:
        parts.append(repr(fields["request"]))
    return " ".join(parts)


def printable(text: str) -> str:
    """On one line, whatever the client put into it."""
    return text.encode("unicode_escape").decode()
