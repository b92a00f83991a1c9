"""Decode steps as CUDA graphs: what a forward starts is recorded once, and then started as a whole.

A graph belongs to a ``Shape``: so many sequences of one token each, each with at most so many KV
blocks. A step takes the smallest shape that it fits in. What is missing is filled with padding
sequences, whose keys and values go to the trash block, and whose rows no other row looks at.

A shape is recorded once it has been met a few times, so that the first tokens do not wait. It is
recorded in place of a step: the step runs as it is, padded, which makes ready whatever kernels
prepare when they first see a shape, and then once more to be written down. What cannot be recorded
runs as it always did; that is said once.

Knows nothing of what the forward does. ``Recorder`` is all it knows of CUDA.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rosellm.roseinfer.step import StepPlan, Work

log = logging.getLogger(__name__)

PATIENCE = 3
"""Steps of a shape before it is recorded."""

_SMALL_SIZES = (1, 2, 4)
_STEP, _LARGE, _LARGE_STEP = 8, 256, 32
_LEAST_TOKENS, _GROWTH = 1024, 4

_PADDING = -1  # no sequence's number


@dataclass(frozen=True)
class Shape:
    """What a recorded step can hold.

    Attributes:
        sequences: one token each.
        blocks: most KV blocks of one.
    """

    sequences: int
    blocks: int


class Recorded(Protocol):
    """A forward that can be started as a whole.

    Attributes:
        output: what it returned; every start overwrites it.
        num_bytes: memory that it holds.
    """

    output: Tensor
    num_bytes: int

    def replay(self) -> None:
        """Start it on what its inputs' memory holds by then."""


class Recorder(Protocol):
    def record(self, run: Callable[[], Tensor]) -> Recorded:
        """Write down what ``run`` starts, without running it."""


def sizes(most: int) -> tuple[int, ...]:
    """Numbers of sequences for which there are graphs: the last one is the most that can run."""
    ladder = [*_SMALL_SIZES, *range(_STEP, _LARGE, _STEP), *range(_LARGE, most, _LARGE_STEP)]
    return (*(size for size in ladder if size < most), most)


def widths(most_tokens: int, block_size: int) -> tuple[int, ...]:
    """Numbers of KV blocks for which there are graphs: the last one is the longest sequence's."""
    most = -(-most_tokens // block_size)
    found, tokens = [], _LEAST_TOKENS
    while (blocks := -(-tokens // block_size)) < most:
        found.append(blocks)
        tokens *= _GROWTH
    return (*found, most)


class DecodeGraphs:
    """The graphs of one engine.

    Args:
        recorder: makes them.
        sizes, widths: the shapes that there may be, in rising order.
        trash: of each KV group, the block that padding writes to.
        budget: bytes that they may take together.
    """

    def __init__(
        self,
        recorder: Recorder,
        sizes: Sequence[int],
        widths: Sequence[int],
        trash: Sequence[int],
        budget: int,
    ) -> None:
        self._recorder = recorder
        self._sizes, self._widths = sizes, widths
        self._trash = tuple((block,) for block in trash)
        self._budget = budget
        self._graphs: dict[Shape, dict[int, Recorded]] = {}  # by shape, and by mark
        self._met: Counter[Shape] = Counter()
        self._over = False

    @property
    def num_bytes(self) -> int:
        """Memory that all of them hold."""
        graphs = (graph for marked in self._graphs.values() for graph in marked.values())
        return sum(graph.num_bytes for graph in graphs)

    @property
    def shapes(self) -> set[Shape]:
        """Those that are recorded."""
        return set(self._graphs)

    def claim(self, plan: StepPlan) -> Shape | None:
        """The shape that a plan is to be padded to, or None: it runs as it is.

        Call once a step. A plan that is not padded is met, and counts.
        """
        shape = self._shape_of(plan)
        if shape is None or shape in self._graphs:
            return shape
        self._met[shape] += 1
        due = not self._over and self._met[shape] > PATIENCE
        return shape if due else None

    def pad(self, plan: StepPlan, shape: Shape) -> StepPlan:
        """The same work with padding behind it."""
        padding = Work(_PADDING, 0, (0,), self._trash)
        return StepPlan(plan.work + (padding,) * (shape.sequences - len(plan.work)))

    def run(self, shape: Shape, mark: int | None, forward: Callable[[], Tensor]) -> Tensor:
        """The forward's result, valid until the next run.

        Args:
            mark: where its inputs lie, see ``Uploads.mark``; they may lie elsewhere in a step with
                another one. None: anywhere.
            forward: the whole forward of a padded step. It may be called twice.
        """
        if mark is None:
            return forward()
        graph = self._graphs.get(shape, {}).get(mark)
        if graph is None:
            hidden = forward()
            self._record(shape, mark, forward)
            return hidden
        graph.replay()
        return graph.output

    def drop(self, reason: str) -> None:
        """Give the memory of all graphs back, and record no more."""
        self._stop(reason)
        self._graphs.clear()

    def _shape_of(self, plan: StepPlan) -> Shape | None:
        if any(len(work.tokens) > 1 for work in plan.work):
            return None
        longest = max(len(table) for work in plan.work for table in work.tables)
        sequences = _least(self._sizes, len(plan.work))
        blocks = _least(self._widths, longest)
        return None if sequences is None or blocks is None else Shape(sequences, blocks)

    def _record(self, shape: Shape, mark: int, forward: Callable[[], Tensor]) -> None:
        if self._over:
            return
        try:
            graph = self._recorder.record(forward)
        except Exception as error:  # whatever it is, serving does not depend on graphs
            self._stop(f"{type(error).__name__}: {error}")
            return
        self._graphs.setdefault(shape, {})[mark] = graph
        log.debug("recorded a CUDA graph of %s, %d bytes", shape, graph.num_bytes)
        if self.num_bytes >= self._budget:
            self._stop("they have taken the memory that was set aside for them")

    def _stop(self, reason: str) -> None:
        """Only the first reason is told: those after it follow from it."""
        if not self._over:
            first = str(reason).partition("\n")[0]
            log.warning("no more CUDA graphs are recorded, other steps run without: %s", first)
        self._over = True


def _least(ladder: Sequence[int], value: int) -> int | None:
    return next((step for step in ladder if step >= value), None)


class _CudaGraph:
    """See ``Recorded``."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor, num_bytes: int) -> None:
        self._graph = graph
        self.output = output
        self.num_bytes = num_bytes

    def replay(self) -> None:
        self._graph.replay()


class CudaRecorder:
    """See ``Recorder``. All graphs share their memory: no two of them run at the same time, and
    what one returns is used up before another one starts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        torch.cuda.empty_cache()  # so that the difference is what the graph takes
        before, _ = torch.cuda.mem_get_info(self._device)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the device at this time is none of its concern.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = run()
        after, _ = torch.cuda.mem_get_info(self._device)
        return _CudaGraph(graph, output, max(before - after, 0))
