"""A traced model's operations, one kernel after the other, with sums fused into norms.

The rounding of a fused operation is that of the two: a program's results are the model's, in bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rosellm.roseinfer.attention.step import HeadNorms, Heads, Step
from rosellm.roseinfer.kernels.trace import Norm, Operation, last_uses
from rosellm.roseinfer.kernels.triton import rows

if TYPE_CHECKING:
    from rosellm.roseinfer.kernels.triton.products import Products

Attention = Callable[[Tensor, Heads, HeadNorms | None, Step], Tensor]


class Program:
    """Token ids [T] and a step to hidden states [T, width].

    Args:
        operations: what the model does.
        result: the value that it gives.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        result: int,
        products: Products,
        attend: Attention,
    ) -> None:
        self._result = result
        self._products = products
        self._attend = attend
        self._groups = _fused(operations)
        last = last_uses(operations, result)
        at = 0
        self._over: list[list[int]] = []  # values that nobody reads after a group
        for group in self._groups:
            at += len(group)
            self._over.append([v for v, use in last.items() if at - len(group) <= use < at])

    def __call__(self, ids: Tensor, step: Step) -> Tensor:
        values: dict[int, Tensor] = {}
        for group, over in zip(self._groups, self._over, strict=True):
            if len(group) == 2:
                self._run_sum_norm(group[0], group[1], values)
            else:
                values[group[0].target] = self._run(group[0], values, ids, step)
            for value in over:
                del values[value]
        return values[self._result]

    def _run(
        self, operation: Operation, values: dict[int, Tensor], ids: Tensor, step: Step
    ) -> Tensor:
        what: Any = operation.what
        if operation.op == "lookup":
            of = ids if what.source == "ids" else step.positions
            return self._products.embedding(of, what.table)
        x, *others = (values[source] for source in operation.sources)
        if operation.op == "linear":
            return self._products.linear(x, what)
        if operation.op == "attend":
            return self._attend(x, what.heads, what.norms, step)
        if operation.op == "sum":
            return x + others[0]
        if operation.op == "scale":
            scaled: Tensor = x * what
            return scaled
        return _norm(x, what)

    def _run_sum_norm(self, added: Operation, norm: Operation, values: dict[int, Tensor]) -> None:
        x, y = (values[source] for source in added.sources)
        what: Norm = norm.what
        parts = rows.sum_norm(x, y, what.weight, what.bias, what.eps)
        values[added.target], values[norm.target] = parts


def _norm(x: Tensor, what: Norm) -> Tensor:
    if what.bias is None:
        return rows.rms_norm(x, what.weight, what.eps)
    return rows.layer_norm(x, what.weight, what.bias, what.eps)


def _fused(operations: Sequence[Operation]) -> list[list[Operation]]:
    """Each by itself, but a sum with the norm of it that comes next."""
    groups: list[list[Operation]] = []
    for operation in operations:
        before = groups[-1] if groups else []
        follows = len(before) == 1 and before[0].op == "sum"
        if follows and operation.op == "norm" and operation.sources == (before[0].target,):
            before.append(operation)
        else:
            groups.append([operation])
    return groups
