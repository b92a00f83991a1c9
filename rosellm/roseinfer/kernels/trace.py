"""A model's forward as a list of operations: traced once, to be run as a program each step.

A model is called with ``Rows`` where its tensors would be; every operation on them is written
down. It knows nothing of pointers: each set of kernels has a ``program`` that takes the list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads

if TYPE_CHECKING:
    from rosellm.roseinfer.models.skeleton import Model

Op = Literal["lookup", "norm", "linear", "attend", "sum", "scale"]
Source = Literal["ids", "positions"]


class UntraceableError(Exception):
    """A model does something with its rows that no program can."""


@dataclass(frozen=True)
class Operation:
    """One line of the list.

    Attributes:
        target: the value that it makes, by number.
        sources: the values that it reads.
        what: weights, shapes, factors; what they are depends on ``op``.
        adds: a linear that adds to what its target holds.
    """

    op: Op
    target: int
    sources: tuple[int, ...]
    what: Any
    adds: bool = False


@dataclass(frozen=True)
class Ids:
    """Token ids or positions of a step, which only exist when the program runs."""

    trace: Trace
    source: Source


@dataclass(frozen=True)
class Rows:
    """A value of a traced model: fp32 rows [T, width], which only exist when the program runs."""

    trace: Trace
    number: int
    width: int

    def __add__(self, other: Any) -> Rows:
        if not isinstance(other, Rows):
            raise UntraceableError
        return self.trace.add("sum", self.width, (self, other))

    def __mul__(self, factor: Any) -> Rows:
        if not isinstance(factor, int | float):
            raise UntraceableError
        return self.trace.add("scale", self.width, (self,), factor)

    __rmul__ = __mul__

    def _other(self, *_: Any) -> Rows:
        raise UntraceableError

    __radd__ = __sub__ = __rsub__ = __truediv__ = __neg__ = __pow__ = __getitem__ = _other
    __getattr__ = _other

    @classmethod
    def __torch_function__(cls, *_: Any) -> Rows:
        raise UntraceableError


@dataclass(frozen=True)
class TracedStep:
    """What a traced model sees of a step."""

    positions: Ids


@dataclass
class Trace:
    """Operations in their order, and the width of every value."""

    operations: list[Operation] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)

    def add(self, op: Op, width: int, sources: Iterable[Rows], what: Any = None) -> Rows:
        """Write an operation down; what it will make."""
        made = Rows(self, len(self.widths), width)
        self.widths.append(width)
        read = tuple(source.number for source in sources)
        self.operations.append(Operation(op, made.number, read, what))
        return made


@dataclass(frozen=True)
class Lookup:
    """Rows of a packed table."""

    table: Any
    source: Source


@dataclass(frozen=True)
class Norm:
    """A layer norm, or an RMS norm, which has no bias."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Attend:
    """What an attention takes beside its rows."""

    heads: Heads
    norms: HeadNorms | None


@dataclass(frozen=True)
class Listing:
    """A trace with its values put into buffers, which are used again when they are free.

    Attributes:
        operations: with buffers' numbers where values' were.
        widths: of each buffer. The last one is what the model gives.
    """

    operations: tuple[Operation, ...]
    widths: tuple[int, ...]


def traced(model: Model) -> tuple[Trace, Rows] | None:
    """A model's forward and the value that it ends in; None if it cannot be traced."""
    if not model.traceable:
        return None
    trace = Trace()
    step: Any = TracedStep(Ids(trace, "positions"))
    ids: Any = Ids(trace, "ids")
    try:
        result: Any = model(ids, step)
    except UntraceableError:
        return None
    return trace, result


def listed(trace: Trace, result: Rows) -> Listing:
    """The operations that a program runs."""
    operations = _added_in_place(trace.operations, result.number)
    return _in_buffers(operations, trace.widths, result.number)


def _added_in_place(operations: list[Operation], result: int) -> list[Operation]:
    """``x + linear(...)``, where x is not needed any more, as a linear that adds to x."""
    last = last_uses(operations, result)
    done: list[Operation] = []
    renamed: dict[int, int] = {}
    for at, operation in enumerate(operations):
        sources = tuple(renamed.get(source, source) for source in operation.sources)
        operation = replace(operation, sources=sources)
        before = done[-1] if done else None
        into = _can_add(operation, before, at, last, operations[at].sources)
        if before is not None and into is not None:
            done[-1] = replace(before, target=into, adds=True)
            renamed[operation.target] = into
        else:
            done.append(operation)
    return done


def _can_add(
    operation: Operation,
    before: Operation | None,
    at: int,
    last: dict[int, int],
    names: tuple[int, ...],
) -> int | None:
    """The value that ``before`` may add to instead of ``operation``, a sum; None if it may not."""
    if operation.op != "sum" or before is None or before.op != "linear" or before.adds:
        return None
    if before.what.finish != "store":
        return None
    for product, into in (operation.sources, operation.sources[::-1]):
        free = all(last[name] == at for name in names)
        if product == before.target and into != product and into not in before.sources and free:
            return into
    return None


def last_uses(operations: Iterable[Operation], result: int) -> dict[int, int]:
    """Index of the operation that reads a value last; beyond the end for the result."""
    count = 0
    last: dict[int, int] = {}
    for at, operation in enumerate(operations):
        count = at + 1
        last.update(dict.fromkeys(operation.sources, at))
        last.setdefault(operation.target, at)
    last[result] = count
    return last


def _in_buffers(operations: list[Operation], widths: list[int], result: int) -> Listing:
    last = last_uses(operations, result)
    free: dict[int, list[int]] = {}
    sizes: list[int] = []
    buffer: dict[int, int] = {}
    done: list[Operation] = []
    for at, operation in enumerate(operations):
        if operation.target not in buffer:
            buffer[operation.target] = _take(free, sizes, widths[operation.target])
        sources = tuple(buffer[source] for source in operation.sources)
        done.append(replace(operation, target=buffer[operation.target], sources=sources))
        for value in {*operation.sources, operation.target}:
            if last[value] == at:
                free.setdefault(widths[value], []).append(buffer[value])
    return _with_result_last(done, sizes, buffer[result])


def _take(free: dict[int, list[int]], sizes: list[int], width: int) -> int:
    if free.get(width):
        return free[width].pop()
    sizes.append(width)
    return len(sizes) - 1


def _with_result_last(operations: list[Operation], sizes: list[int], result: int) -> Listing:
    order = [at for at in range(len(sizes)) if at != result] + [result]
    place = {old: new for new, old in enumerate(order)}
    moved = tuple(
        replace(each, target=place[each.target], sources=tuple(place[s] for s in each.sources))
        for each in operations
    )
    return Listing(moved, tuple(sizes[old] for old in order))
