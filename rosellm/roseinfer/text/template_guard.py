"""Chat templates under limits: Jinja's sandbox, and bounds on what a rendering may take.

A template comes from strangers, and is a program. The sandbox keeps it from the interpreter's
insides, but not from looping or growing for ever. So every operation that could make much of
little is refused when its result would be out of proportion to what the template was given, and
between any two operations the clock is looked at. It is the thread's processor time: a template
that merely waits for its turn is not to blame.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 1.0
"""Processor time that one rendering may take."""

MOST_SOURCE = 1 << 20
"""Characters of a template; real ones have up to some 20,000."""

_BASE, _FACTOR = 1 << 20, 8  # characters that may come of nothing, and of each that is given
_NODE = 8  # characters that a number, a list, or a string's quotes count as
_MOST_BITS = 4096  # of a whole number
_MOST_EXPONENT = 64
_MOST_WIDTH = 9999  # of a formatted number
_WIDTH = re.compile(r"\d{5}")
_WIDTH_FROM_ARGUMENT = re.compile(r"\*|\{[^{}]*\{")
_UNUSED = ("lipsum", "cycler", "joiner")
_UNUSED_METHODS = ("translate", "maketrans", "format_map", "to_bytes", "from_bytes")
_UNUSED_FILTERS = ("urlize", "wordwrap", "pprint", "xmlattr", "filesizeformat", "random")


class LimitError(Exception):
    """A template takes too long, or makes too much."""


@dataclass
class _Rendering:
    """What is going on in a thread."""

    deadline: float
    most: int
    written: int = 0


class _Here(threading.local):
    rendering: _Rendering | None = None


_here = _Here()


@contextmanager
def limits(variables: Mapping[str, Any]) -> Iterator[None]:
    """Bounds on what is rendered inside, in proportion to what it is given."""
    outer = _here.rendering
    given = measure(variables, 1 << 40)
    _here.rendering = _Rendering(time.thread_time() + SECONDS, _BASE + _FACTOR * given)
    try:
        yield
    finally:
        _here.rendering = outer


def measure(value: Any, most: int) -> int:
    """Roughly the characters that a value comes to as text.

    Raises:
        LimitError: more than that.
    """
    total, seen, waiting = 0, 0, [value]
    while waiting:
        each = waiting.pop()
        seen += 1
        if isinstance(each, str | bytes):
            total += len(each)
        elif isinstance(each, Mapping):
            waiting += each
            waiting += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
        elif isinstance(each, Namespace):
            waiting.append(each._Namespace__attrs)
        if total + seen * _NODE > most:
            raise LimitError("makes too much text")
        if seen % 1024 == 0:
            _tick()
    return total + seen * _NODE


def _most() -> int:
    rendering = _here.rendering
    return _BASE if rendering is None else rendering.most


def _tick(written: int = 0) -> str:
    """Look at the clock, and count what is put out."""
    rendering = _here.rendering
    if rendering is not None:
        rendering.written += written
        if rendering.written > rendering.most:
            raise LimitError("makes too much text")
        if time.thread_time() > rendering.deadline:
            raise LimitError(f"takes more than {SECONDS:g} s")
    return ""


def _check(size: int) -> None:
    if size > _most():
        raise LimitError("makes too much text")


def _size(value: Any) -> int:
    """Of a value as a part of a text."""
    return len(value) if isinstance(value, str | bytes) else measure(value, _most())


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with those bounds; without ``limits`` around it sizes alone are bounded."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_put_out)
        for name in _UNUSED:
            self.globals.pop(name, None)
        for name in _UNUSED_FILTERS:
            self.filters.pop(name, None)
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Make a function a filter, bounded as all others are."""
        self.filters[name] = _bounded_filter(name, function)

    # what the generated code calls, see ``_guard``; no template can name these
    tick = staticmethod(_tick)

    @staticmethod
    def concat_parts(*parts: Any) -> str:
        """``a ~ b``."""
        _check(sum(map(_size, parts)))
        return "".join(map(str, parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _guarded(super()._parse(source, name, filename))

    @staticmethod
    def held(value: Any) -> Any:
        """A list, tuple or dictionary that the template writes: parts that occur in it twice count
        twice, as they do for whatever goes through it later."""
        measure(value, _most())
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | list | tuple | int | float):
            _check_growth(obj.__name__, owner, _length(owner), (*args, *kwargs.values()))
        result = super().call(context, obj, *args, **kwargs)
        return self.held(result) if obj is dict else result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _UNUSED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, which the sandbox replaces by its own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = value.__self__

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(text, "{", (*args, *kwargs.values()))
            made: str = wrapped(*args, **kwargs)
            return made

        return bounded

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _tick()
        _BOUNDS[operator](left, right)
        return super().call_binop(context, operator, left, right)


# -- operators -------------------------------------------------------------------------------


def _check_sum(left: Any, right: Any) -> None:
    if isinstance(left, Collection) and isinstance(right, Collection):
        _check(len(left) + len(right))
    elif isinstance(left, int) and isinstance(right, int):
        _check_bits(max(left.bit_length(), right.bit_length()))


def _check_product(left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
            _check(len(many) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * (right if abs(right) <= _MOST_EXPONENT else _MOST_BITS))


def _check_bits(count: int) -> None:
    if count > _MOST_BITS:
        raise LimitError("counts too far")


def _check_modulo(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes):
        _check_format(left, "%", right if isinstance(right, tuple) else (right,))


_BOUNDS: Mapping[str, Callable[[Any, Any], None]] = {
    "+": _check_sum,
    "*": _check_product,
    "**": _check_power,
    "%": _check_modulo,
}

# -- calls and filters -----------------------------------------------------------------------


def _check_growth(name: str, owner: Any, length: int, args: tuple[Any, ...]) -> None:
    """Refuse a method or a filter whose result could be far larger than what goes in.

    Args:
        length: of the owner, as text where it will be one.
    """
    if name == "join":
        separator, parts = (owner, args[0]) if isinstance(owner, str) and args else (args, owner)
        return _check_join(separator, parts)
    if name == "sum" and any(not isinstance(each, int | float | str) for each in args):
        raise LimitError("sums up what are no numbers")
    if name == "format":
        return _check_format(owner, "%", args)
    factor = 1
    for each in args:
        if isinstance(each, int):
            factor *= max(abs(each), 1)
        elif isinstance(each, str | bytes):
            factor = max(factor, len(each))
    if factor > 1:
        _check((length + 1) * factor)
    return None


def _check_join(separator: Any, parts: Any) -> None:
    if isinstance(parts, list | tuple | Mapping | str):
        between = sum(len(each) for each in _tuple(separator) if isinstance(each, str))
        _check(measure(list(parts), _most()) + between * len(parts))


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_format(text: str | bytes, mark: str, args: Iterable[Any]) -> None:
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    given = list(args)
    wide = any(isinstance(each, int) and abs(each) > _MOST_WIDTH for each in given)
    if _WIDTH.search(plain) or (wide and _WIDTH_FROM_ARGUMENT.search(plain)):
        raise LimitError("makes too much text")
    longest = max(map(_size, given), default=0)
    _check(len(plain) + plain.count(mark) * max(longest, _MOST_WIDTH))


_TEXTUAL = {
    "string", "tojson", "escape", "e", "forceescape", "safe", "upper", "lower", "title", "trim",
    "capitalize", "replace", "center", "indent", "truncate", "striptags", "urlencode", "wordcount",
    "format",
}  # fmt: skip
_LISTING = {"list", "batch", "slice", "groupby", "sort", "unique", "dictsort", "items", "reverse"}


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    own = int(getattr(function, "jinja_pass_arg", None) is not None)  # a context comes first

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _tick()
        before, (value, *others) = args[:own], args[own:]
        if name == "join" and not isinstance(value, list | tuple | Mapping | str):
            value = list(_ticking(value))
        if name in _LISTING and not isinstance(value, Collection):
            value = list(_ticking(value))
        measured = name in _TEXTUAL or name in _LISTING
        length = measure(value, _most()) if measured else _length(value)
        _check_growth(name, value, length, (*others, *kwargs.values()))
        return function(*before, value, *others, **kwargs)

    return bounded


def _length(value: Any) -> int:
    return len(value) if isinstance(value, Collection) else 1


def _ticking(values: Iterable[Any]) -> Iterator[Any]:
    for each in values:
        _tick()
        yield each


def _put_out(value: Any) -> Any:
    """What every ``{{ value }}`` goes through."""
    _tick(_size(value))
    return value


# -- the program itself ----------------------------------------------------------------------


def _guarded(tree: nodes.Template) -> nodes.Template:
    """The same template, whose loops and macros look at the clock in every round."""
    _Sizes().visit(tree)
    for each in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        assert isinstance(each, nodes.For | nodes.Macro | nodes.CallBlock)
        written = sum(len(data.data) for data in each.find_all(nodes.TemplateData))
        look = _call("tick", [nodes.Const(written, lineno=each.lineno)], each.lineno)
        each.body.insert(0, nodes.ExprStmt(look, lineno=each.lineno))
    return tree


class _Sizes(NodeTransformer):
    """Turns every ``a ~ b``, and every list that is written out, into a call that looks at it."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat_parts", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("held", [node], node.lineno)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return node if node.ctx != "load" else self.visit_List(node)


def _call(name: str, args: list[nodes.Expr], line: int) -> nodes.Call:
    target = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(target, args, [], None, None, lineno=line)
