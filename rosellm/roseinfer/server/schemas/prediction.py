"""``prediction`` of a chat request: what the answer may turn out to be."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.server.schemas.messages import Content, text_of


class Prediction(Body):
    """Static content."""

    type: Literal["content"] = Field(description="What the prediction is.")
    content: Content = Field(
        description="A text, or a list of text parts. What of it the answer has comes sooner."
    )

    @property
    def text(self) -> str:
        return text_of(self.content)
