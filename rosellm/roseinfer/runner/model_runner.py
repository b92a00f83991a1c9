"""Runs a plan on the model: ``execute(plan)`` starts it, ``handle.result()`` waits for it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.grammar.masks import Bits
from rosellm.roseinfer.kernels.forward import Forward
from rosellm.roseinfer.kernels.table import Ops
from rosellm.roseinfer.layers.rope import Angles, RopeTable
from rosellm.roseinfer.messages import Logprobs, Pooled, Pooling
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.runner import memory
from rosellm.roseinfer.runner.arena import Uploads, uploads_of
from rosellm.roseinfer.runner.awaited import lay_out_awaited
from rosellm.roseinfer.runner.cuda_graph import DecodeGraphs, Shape
from rosellm.roseinfer.runner.fetch import Fetched
from rosellm.roseinfer.runner.inputs import StepInputs, build_inputs
from rosellm.roseinfer.runner.pooling import pool
from rosellm.roseinfer.runner.rows import RowInputs, lay_out_rows
from rosellm.roseinfer.runner.sampler import Chosen, sample, to_samples
from rosellm.roseinfer.runner.scores import score, to_logprobs
from rosellm.roseinfer.step import Sample, StepPlan, StepResult, Work, WorkResult

_UPLOAD_BYTES = 16 << 20  # where nobody has counted


@dataclass(frozen=True)
class Handle:
    """A submitted plan. On a GPU the work may still be running.

    Attributes:
        rows: what was asked of its hidden states.
        chosen: the tokens, on the device.
        fetched: all results: those of the logit rows, then scores, then vectors.
    """

    plan: StepPlan
    rows: RowInputs
    chosen: Chosen | None
    fetched: Fetched

    def result(self) -> StepResult:
        """Wait, and hand the results out to the plan's work items."""
        parts = iter(self.fetched.wait())
        chosen = list(islice(parts, len(self.chosen.tensors) if self.chosen else 0))
        scored = list(islice(parts, 3 if self.rows.tops else 0))
        samples = iter(to_samples(self.rows.wishes.rows, chosen) if chosen else [])
        scores = iter(to_logprobs(self.rows.tops, scored))
        return StepResult(tuple(_hand_out(w, samples, scores, parts) for w in self.plan.work))


def _hand_out(
    work: Work, samples: Iterator[Sample], scores: Iterator[Logprobs], vectors: Iterator[Tensor]
) -> WorkResult:
    chosen = tuple(islice(samples, len(work.logits)))
    scored = tuple(islice(scores, len(work.scoring.targets) if work.scoring else 0))
    vector = next(vectors) if work.pool else None
    sound = all(sample.finite for sample in chosen)
    sound = sound and not any(math.isnan(score.chosen) for score in scored)
    if not sound or (vector is not None and not vector.isfinite().all()):
        return WorkResult(fault="the model gave something that is no number")
    return WorkResult(chosen, scored, None if vector is None else Pooled(vector.numpy().tobytes()))


@dataclass(frozen=True)
class LaidOut:
    """A step, ready to be submitted.

    Attributes:
        inputs: of its tokens, and perhaps of padding.
        metas: the backend's description of them, per KV group.
        rows: what is to be made of its hidden states.
        shape, mark: of the graph that runs it, if one does, and of what was put for it.
    """

    inputs: StepInputs
    metas: tuple[Any, ...]
    rows: RowInputs
    shape: Shape | None
    mark: int | None


class ModelRunner:
    """A model, its KV cache, and what they need to run a step.

    Args:
        ops: what the model is made of, and what samples.
        max_model_len: positions that can occur.
        pooling: how a sequence's vector is made.
        uploads: how a step's numbers get to the device.
        graphs: for decode steps; None runs them as they are written.
    """

    def __init__(
        self,
        model: Model,
        ops: Ops,
        storage: KVStorage,
        backend: AttentionBackend,
        device: torch.device,
        max_model_len: int,
        pooling: Pooling = "last",
        uploads: Uploads | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._ops = ops
        self._storage = storage
        self._backend = backend
        self._device = device
        self._pooling = pooling
        self._uploads = uploads or uploads_of(device, _UPLOAD_BYTES)
        self._graphs = graphs
        self._sampled: Tensor | None = None
        self._event = None if device.type == "cpu" else torch.cuda.Event
        spec = model.spec
        self._ropes = {
            rope: RopeTable(rope, max_model_len, device)
            for rope in map(spec.rope_of, range(spec.num_layers))
            if rope is not None
        }
        self._forward = ops.forward(model, storage, self._ropes)
        self._pulse = torch.zeros((), device=device)  # there when memory is short

    @torch.inference_mode()
    def execute(self, plan: StepPlan, masks: Future[Bits] | None = None) -> Handle:
        """Compute the plan's tokens, write their KV, sample its logit rows.

        What it awaits is taken from the plan that was executed before, on the device.
        """
        laid = self._lay_out(plan)
        rows = laid.rows
        hidden, chosen = self._run(laid, masks)
        self._sampled = chosen.tokens if chosen else None
        scores = score(self._model.logits, hidden, rows, self._ops)
        results = [*(chosen.tensors if chosen else []), *scores]
        fetched = Fetched([*results, *self._vectors(plan, hidden)], self._event)
        return Handle(plan, rows, chosen, fetched)

    @torch.inference_mode()
    def probe(self) -> None:
        """Raise if the device computes nothing any more, as CUDA after an illegal address does."""
        self._pulse.add_(1)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def hidden_states(self, plan: StepPlan) -> Tensor:
        """Compute the plan's tokens and write their KV: [T, H], what ``model.logits`` takes."""
        return self._hidden(self._lay_out(plan))[: plan.num_tokens].clone()

    def make_room(self, error: Exception, *, again: bool = False) -> bool:
        """Give back what can be spared, if it was memory that an ``execute`` lacked.

        The KV cache stays: its memory was set aside at the start, and evicting blocks would free
        none of it.

        Args:
            again: graphs go too.

        Returns:
            Whether it was.
        """
        if not memory.ran_out(error):
            return False
        traceback.clear_frames(error.__traceback__)  # which hold the step's tensors
        if again and self._graphs is not None:
            self._graphs.drop("memory ran out in a step")
        memory.empty_caches(self._device)
        return True

    @property
    def model(self) -> Model:
        return self._model

    @property
    def forward(self) -> Forward:
        """What runs the model in a step; for benchmarks."""
        return self._forward

    def _lay_out(self, plan: StepPlan) -> LaidOut:
        """Put all that a step needs where it is computed."""
        uploads = self._uploads
        uploads.begin()
        shape = self._graphs.claim(plan) if self._graphs else None
        inputs = build_inputs(self._padded(plan, shape), uploads.put)
        metas = self._metas(inputs, None if shape is None else shape.blocks)
        mark = uploads.mark()
        rows = lay_out_rows(plan, self._model.spec.vocab_size, self._ops, uploads.put)
        awaited = lay_out_awaited(plan, uploads.put)
        uploads.send()
        if awaited is not None:
            assert self._sampled is not None, "nothing was sampled that could be awaited"
            awaited.fill(self._sampled, inputs.ids, rows.wishes.penalties)
        return LaidOut(inputs, metas, rows, shape, mark)

    def _run(self, laid: LaidOut, masks: Future[Bits] | None) -> tuple[Tensor, Chosen | None]:
        """Hidden states of the step's tokens, and perhaps of padding; and its rows' tokens."""
        rows, at_once = laid.rows, self._forward.sampled
        if at_once is None or masks is not None or not rows.wishes.only_draw:
            hidden = self._hidden(laid)
            return hidden, self._choose(hidden, rows, masks)
        step = self._step(laid.inputs, laid.metas)
        hidden, tokens, finite = at_once(laid.inputs.ids, step, rows.rows, rows.wishes.drawing)
        return hidden, Chosen(tokens, finite)

    def _hidden(self, laid: LaidOut) -> Tensor:
        def forward() -> Tensor:
            return self._forward.hidden(laid.inputs.ids, self._step(laid.inputs, laid.metas))

        if self._graphs is None or laid.shape is None:
            return forward()
        return self._graphs.run(laid.shape, laid.mark, forward)

    def _padded(self, plan: StepPlan, shape: Shape | None) -> StepPlan:
        return plan if self._graphs is None or shape is None else self._graphs.pad(plan, shape)

    def _choose(self, hidden: Tensor, rows: RowInputs, masks: Future[Bits] | None) -> Chosen | None:
        if not rows.wishes.rows:
            return None
        every = slice(len(rows.wishes.rows))  # of what may be padded
        logits = self._model.logits(hidden[every if rows.rows is None else rows.rows])
        allowed = None
        if masks is not None:
            allowed = self._uploads.late(torch.from_numpy(masks.result()))
        return sample(logits, rows.wishes, self._ops, allowed)

    def _vectors(self, plan: StepPlan, hidden: Tensor) -> tuple[Tensor, ...]:
        """The vector of every work item that wants one, in fp32."""
        if not any(work.pool for work in plan.work):
            return ()
        parts = hidden[: plan.num_tokens].split([len(work.tokens) for work in plan.work])
        pairs = zip(plan.work, parts, strict=True)
        return tuple(pool(part, self._pooling) for work, part in pairs if work.pool)

    def _metas(self, inputs: StepInputs, blocks: int | None = None) -> tuple[Any, ...]:
        """The backend's description of a step, per KV group."""
        groups = zip(inputs.tables, self._storage.groups, self._storage.null_blocks, strict=True)
        return tuple(
            self._backend.prepare(
                inputs.starts,
                inputs.lengths,
                tables,
                null,
                group.window,
                group.causal,
                self._uploads.put,
                blocks,
            )
            for tables, group, null in groups
        )

    def _step(self, inputs: StepInputs, metas: tuple[Any, ...]) -> Step:
        return Step(
            positions=inputs.positions,
            ropes=Angles(self._ropes, inputs.positions),
            backend=self._backend,
            metas=metas,
            storage=self._storage,
        )
