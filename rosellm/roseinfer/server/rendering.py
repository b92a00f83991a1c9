"""What a chat template is told of a request, all of its fields considered."""

from __future__ import annotations

from dataclasses import replace

from rosellm.roseinfer.server.prompts import Prompts
from rosellm.roseinfer.server.schemas.chat import ChatRequest
from rosellm.roseinfer.server.schemas.template import Rendering
from rosellm.roseinfer.server.tools import shown_tools, tool_use


def rendering(body: ChatRequest, prompts: Prompts) -> Rendering:
    """
    Raises:
        RequestError: the template has no use for tools, or for a reasoning effort.
    """
    use = tool_use(body)
    if use is not None:
        prompts.formats.check_tools()
    said = body.rendering
    return replace(
        said,
        tools=shown_tools(use.tools) if use else None,
        variables={**prompts.effort(body.reasoning_effort), **said.variables},
    )
