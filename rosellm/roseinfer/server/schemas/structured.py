"""Request fields that say what an answer must look like: OpenAI's ``response_format``, and vLLM's
``structured_outputs``, which knows more than JSON."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rosellm.roseinfer.server.schemas.fields import Body
from rosellm.roseinfer.text.grammar_source import (
    Choice,
    GrammarSource,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
)

MAX_CHOICES = 20_000
Schema = dict[str, Any] | bool
Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class TextFormat(Body):
    """``response_format`` as it is by default."""

    type: Literal["text"] = Field(description="Text of any form.")


class JsonObjectFormat(Body):
    """An answer that is some JSON object."""

    type: Literal["json_object"] = Field(description="Any JSON object.")

    @property
    def source(self) -> GrammarSource:
        return JsonObject()


with warnings.catch_warnings():  # a field may be called as an old method of its base is
    warnings.simplefilter("ignore")

    class NamedSchema(Body):
        """A schema as OpenAI wraps it."""

        name: str = Field(
            pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Of the client's own choosing."
        )
        description: str | None = Field(
            default=None, description="For people: the model is not told."
        )
        schema: dict[str, Any] | None = Field(  # type: ignore[assignment]
            default=None,
            description="The JSON Schema (draft 2020-12); any object where it is left out.",
        )
        strict: bool | None = Field(
            default=None, description="Answers fit the schema whatever this says."
        )

    class StructuredOutputs(Body):
        """One of four ways to say it."""

        json: Schema | str | None = Field(  # type: ignore[assignment]
            default=None, description="A JSON Schema, as an object or written out in a string."
        )
        regex: str | None = Field(
            default=None,
            description="A regular expression that the whole answer matches; the syntax is that of"
            " Rust's `regex` crate, without look-around.",
        )
        choice: Choices | None = Field(
            default=None,
            description="Texts of which the answer is one.",
        )
        grammar: str | None = Field(
            default=None,
            description="A context-free grammar: Lark's syntax with a rule `start`, or GBNF"
            " (`root ::= ...`).",
        )

        @model_validator(mode="after")
        def _one_way(self) -> StructuredOutputs:
            ways = (self.json, self.regex, self.choice, self.grammar)
            if sum(way is not None for way in ways) != 1:
                raise PydanticCustomError(
                    "one_way", "must hold exactly one of json, regex, choice and grammar"
                )
            return self


class JsonSchemaFormat(Body):
    """An answer that fits a schema."""

    type: Literal["json_schema"] = Field(description="JSON that fits a schema.")
    json_schema: NamedSchema = Field(description="The schema.")

    @property
    def source(self) -> GrammarSource:
        schema = self.json_schema.schema
        return JsonObject() if schema is None else JsonSchema(schema)


def _format_tag(value: Any) -> str:
    """Discriminator; what is none of these is told what a text's format is."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("json_object", "json_schema") else "<text>"


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    Discriminator(_format_tag),
]


Form = tuple[GrammarSource, str]
"""What an answer must look like, and the request field that says so."""


def form_of(asked: StructuredOutputs) -> Form:
    """What is asked for. A schema in a string is still one."""
    if asked.regex is not None:
        return Regex(asked.regex), "structured_outputs.regex"
    if asked.choice is not None:
        return Choice(tuple(asked.choice)), "structured_outputs.choice"
    if asked.grammar is not None:
        return Lark(asked.grammar), "structured_outputs.grammar"
    return JsonSchema(asked.json), "structured_outputs.json"  # type: ignore[arg-type]
