"""Messages to a prompt, through the model's own Jinja template.

Templates come with a model from strangers, so they run in a sandbox, under limits
(``template_guard``). The helpers are those that Hugging Face gives them. A model without
a template gets a plain format, itself written as a template, so that there is one path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from rosellm.roseinfer.errors import ModelError, RequestError, shown
from rosellm.roseinfer.text.call_history import CallsInHistory, calls_in_history
from rosellm.roseinfer.text.template_guard import MOST_SOURCE, GuardedEnvironment, limits

_PLAIN_FORMAT = """\
{%- set heads = {"system": "[system]", "developer": "[system]",
                 "user": "User: ", "assistant": "Assistant: "} %}
{%- if tools %}
    {{- raise_exception("this model has no chat template, so it takes no tools") }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content or "" %}
    {%- if message.role not in heads or message.tool_calls or content is not string %}
        {{- raise_exception("this model has no chat template, so it takes only text messages of "
                            "the roles system, user and assistant") }}
    {%- endif %}
    {{- heads[message.role] ~ "\n" ~ content ~ "\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "Assistant:" }}{% endif %}
"""


_MOST_REASON = 1000  # characters of what a template may say when it refuses


class ChatTemplate:
    """A model's chat template, compiled once.

    Args:
        source: Jinja source; several by name, of which ``tool_use`` serves requests with tools
            and ``default`` all others; or None for the plain format.
        special_tokens: ``bos_token`` and the like, which templates use as variables.

    Attributes:
        has_own: whether the model brought a template.
        source: of all of them.

    Raises:
        ModelError: a template is not valid Jinja, or none of several is the default.
    """

    def __init__(
        self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]
    ) -> None:
        self.has_own = bool(source)
        named = {"default": source} if isinstance(source, str) else dict(source or {})
        if not named:
            named = {"default": _PLAIN_FORMAT}
        self._templates = {name: _compile(name, text) for name, text in named.items()}
        self.source = "\n".join(named.values())
        if "default" not in self._templates:
            names = shown(", ".join(named))
            raise ModelError(f"no default among the chat templates {names}")
        self._special_tokens = dict(special_tokens)

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the templates look up beside what they set themselves."""
        tree = _environment().parse(self.source)
        return frozenset(meta.find_undeclared_variables(tree))

    @cached_property
    def calls(self) -> CallsInHistory:
        """How this template wants the assistant's earlier tool calls."""
        return calls_in_history(self)

    def render(
        self,
        messages: list[dict[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: OpenAI's message objects, with ``role`` and ``content``.
            add_generation_prompt: end with the start of the assistant's answer.
            continue_final_message: end where the last message's content, a text, does.
            tools: OpenAI's tool objects, in the order given.
            kwargs: further variables for the template, such as ``enable_thinking``.

        Raises:
            RequestError: the template refuses the messages, or fails on them.
        """
        variables = {
            **self._special_tokens,
            "documents": None,
            **kwargs,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return self._open_render(variables, messages)
        return self._render(variables)

    def _open_render(self, variables: dict[str, Any], messages: list[dict[str, Any]]) -> str:
        """The text up to a mark behind the last message's content."""
        *before, last = messages
        mark = _absent_from(last["content"])
        marked = [*before, {**last, "content": last["content"] + mark}]
        text, found, _ = self._render({**variables, "messages": marked}).rpartition(mark)
        if not found:
            raise RequestError(
                "chat template: it does not show the last message, so there is none to continue",
                param="continue_final_message",
            )
        return text

    def _render(self, variables: dict[str, Any]) -> str:
        try:
            with limits(variables):
                return self._template_for(variables["tools"]).render(variables)
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error)[:_MOST_REASON] or type(error).__name__
            raise RequestError(f"chat template: {reason}", param="messages") from error

    def _template_for(self, tools: list[dict[str, Any]] | None) -> Template:
        if tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        return self._templates["default"]


def _absent_from(text: str) -> str:
    """A word that the text does not hold, and that no template would cut."""
    mark = "[here]"
    while mark in text:
        mark += "]"
    return mark


def choose_template(choice: str, own: str | Mapping[str, str] | None) -> str:
    """A template that was asked for instead of the one that a model would use.

    Args:
        choice: path of a file with Jinja source, or the name of one of the model's own.
        own: the templates that came with the model.

    Raises:
        ModelError: there is no such file or name, or it cannot be read, or is not valid Jinja.
    """
    path = Path(choice).expanduser()
    named = dict(own) if isinstance(own, Mapping) else {"default": own} if own else {}
    if not path.is_file() and choice in named:
        return named[choice]
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = f"has {shown(', '.join(named))}" if named else "brings none"
        raise ModelError(
            f"chat template {choice}: no such file, nor one of the model's own, which {names}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat template {choice} cannot be read: {shown(str(error))}") from None
    if path.suffix == ".json":
        raise ModelError(f"chat template {choice}: a file of Jinja source is expected, not JSON")
    _compile(choice, source)
    return source


def _compile(name: str, source: object) -> Template:
    if not isinstance(source, str) or len(source) > MOST_SOURCE:
        raise _invalid(name, f"a text of at most {MOST_SOURCE} characters is expected")
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise _invalid(name, f"{shown(error.message or '')} (line {error.lineno})") from None
    except Exception as error:  # nested too deeply for Jinja or Python, or no Python at all
        raise _invalid(name, shown(str(error) or type(error).__name__)) from None


def _invalid(name: str, reason: str) -> ModelError:
    return ModelError(
        f"chat template {shown(repr(name))} is not valid Jinja: {reason};"
        " --chat-template takes another one"
    )


@cache
def _environment() -> GuardedEnvironment:
    environment = GuardedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """``{% generation %}``: marks the assistant's words for training; here only their scope."""

    tags = {"generation"}  # noqa: RUF012 - so declared by the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is. Jinja's own filter escapes it for HTML, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
