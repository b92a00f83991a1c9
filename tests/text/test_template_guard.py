"""Whatever a chat template does, it ends soon, stays small, and sees only what it is given."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterator

import pytest

from rosellm.roseinfer.errors import ModelError, RequestError
from rosellm.roseinfer.text import template_guard
from rosellm.roseinfer.text.chat import ChatTemplate
from rosellm.roseinfer.text.template_guard import MOST_SOURCE, SECONDS

LITTLE = 0.2

HI = [{"role": "user", "content": "Hi"}]
LARGE = "{% set s = 'a' * 900000 %}"
DOUBLED = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
NESTED = DOUBLED % ("[1]", "[ns.x, ns.x]")

BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop that writes": "{% for i in range(99999) %}{% for j in range(99999) %}text{% endfor %}"
    "{% endfor %}",
    "text in a loop": "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
    "text caught in a loop": "{% set y %}{% for i in range(99999) %}{{ 'a' * 900000 }}{% endfor %}"
    "{% endset %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in range(99) recursive %}{{ loop(range(99)) }}{% endfor %}",
    "repeated text": "{{ 'a' * 10000000000 }}",
    "repeated text, other way": "{% set n = 10000000000 %}{{ n * 'a' }}",
    "repeated list": "{{ ([0] * 10000000000)|length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": DOUBLED % ("3", "ns.x * ns.x"),
    "sums of text": DOUBLED % ("'aa'", "ns.x + ns.x"),
    "sums of lists": DOUBLED % ("[1]", "ns.x + ns.x"),
    "joined text": DOUBLED % ("'aa'", "ns.x ~ ns.x"),
    "nested, put out": NESTED + "{{ ns.x }}",
    "nested, as JSON": NESTED + "{{ ns.x|tojson }}",
    "nested, joined": NESTED + "{{ ns.x ~ '' }}",
    "nested, formatted": NESTED + "{{ '%s' % ns.x }}",
    "nested, formatted otherwise": NESTED + "{{ '{}'.format(ns.x) }}",
    "nested dictionaries": DOUBLED % ("{}", "dict(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "nested, compared": DOUBLED % ("[1]", "[ns.x, ns.x]") + "{% set a = ns.x %}{{ a == ns.x }}",
    "nested in batches": DOUBLED % ("[1]", "((ns.x + ns.x)|batch(2)|list)") + "{{ ns.x }}",
    "itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "centred": "{{ 'a'|center(10000000000) }}",
    "centred by a map": "{{ ['a']|map('center', 1000000000)|list }}",
    "justified": "{{ 'a'.ljust(width=10000000000) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "width as an argument": "{{ '%*d' % (1000000000, 1) }}",
    "width in braces": "{{ '{:10000000000}'.format(1) }}",
    "width as an argument in braces": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "width by a filter": "{{ '%1000000000d'|format(1) }}",
    "replaced": LARGE + "{{ s.replace('a', s)|length }}",
    "replaced by a filter": LARGE + "{{ s|replace('a', s)|length }}",
    "joined": LARGE + "{{ s.join(['b'] * 99999)|length }}",
    "joined by a filter": LARGE + "{{ ([s] * 99999)|join|length }}",
    "joined attributes": LARGE + "{{ ([{'k': s}] * 9999)|join(attribute='k')|length }}",
    "indented": "{{ ('a\\n' * 99999)|indent(99999)|length }}",
    "indented JSON": "{{ [[[1]]]|tojson(indent=1000000000)|length }}",
    "separated JSON": LARGE + "{{ ([1] * 99999)|tojson(separators=(s, s))|length }}",
    "tabs": "{{ '\\t'.expandtabs(1000000000)|length }}",
    "zeros": "{{ 'a'.zfill(1000000000)|length }}",
    "sum of lists": "{{ ([[1] * 999] * 999)|sum(start=[])|length }}",
    "batches": "{{ [1]|batch(1000000000, 'x')|list|length }}",
    "slices": "{{ [1]|slice(1000000000)|list|length }}",
    "bytes": "{{ (1).to_bytes(1000000000, 'big')|length }}",
    "translated": LARGE + "{{ s.translate({97: s})|length }}",
    "long refusal": "{{ raise_exception('a' * 900000) }}",
    "large dates": "{{ strftime_now('%Y' * 900000)|length }}",
}  # fmt: skip


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that those that only the clock ends do not hold up the tests.

    What other tests have left is kept out of garbage collections, whose time would count.
    """
    monkeypatch.setattr(template_guard, "SECONDS", LITTLE)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.alone
@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_soon(name: str) -> None:
    template = ChatTemplate(BOMBS[name], {})
    started, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RequestError, match="chat template: ") as caught:
        template.render(HI)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 2000
    assert time.thread_time() - started < 2 * LITTLE + 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ tick() }}",
    "{{ environment }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ lipsum(n=1000000) }}",
    "{{ ().__class__.__base__ }}",
    "{{ (1).__class__.from_bytes }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_else_is_seen(source: str) -> None:
    """Refused, or nothing is shown; what was given stays as it is."""
    messages = [dict(HI[0])]
    try:
        text = ChatTemplate(source, {}).render(messages)
    except (RequestError, ModelError):
        text = ""
    assert messages == HI
    for sign in ("<class", "<function", "<module", "root:", "object at 0x", "lorem"):
        assert sign not in text


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
        "x" * (MOST_SOURCE + 1),
        "{{ x.",
        "{% for %}",
        "{{ 'a'|no_such_filter }}",
        "\x00{{",
    ],
    ids=range(9),
)
def test_what_cannot_be_compiled_is_one_line(source: str) -> None:
    with pytest.raises(ModelError, match="is not valid Jinja") as caught:
        ChatTemplate(source, {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_long_conversations_are_no_bombs() -> None:
    """Limits go by what is given: megabytes that are shown, cut and quoted."""
    source = (
        "{%- for m in messages %}{{ '<' ~ m.role ~ '>' + m.content.strip().replace('x', 'yz') }}"
        "{{ m|tojson(indent=2) }}{{ m.content.split('w')[-1] }}{{ (m.content|trim)[:100] }}"
        "{%- endfor %}"
    )
    messages = [{"role": "user", "content": "x" * 100_000 + "w"}] * 40
    text = ChatTemplate(source, {}).render(messages)
    assert text.count("<user>") == 40
    assert len(text) > 40 * 300_000


def test_limits_are_a_renderings_own() -> None:
    """One that was refused leaves nothing behind for the next."""
    bad, good = ChatTemplate(BOMBS["loops"], {}), ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(RequestError, match=f"takes more than {SECONDS:g} s"):
        bad.render(HI)
    assert good.render(HI) == "Hi"
