"""Runs a plan on the model: ``execute(plan)`` starts it, ``handle.result()`` waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.attention.step import Step
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.grammar.masks import Bits
from rosellm.roseinfer.kernels.table import Forward, Ops
from rosellm.roseinfer.layers.rope import Angles, RopeTable
from rosellm.roseinfer.messages import Logprobs, Pooled, Pooling
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.runner.inputs import StepInputs, build_inputs
from rosellm.roseinfer.runner.pooling import pool
from rosellm.roseinfer.runner.sampler import Chosen, sample
from rosellm.roseinfer.runner.scores import Scores, score
from rosellm.roseinfer.step import Sample, StepPlan, StepResult, Work, WorkResult


@dataclass(frozen=True)
class Handle:
    """A submitted plan. On a GPU the work may still be running."""

    plan: StepPlan
    inputs: StepInputs
    chosen: Chosen | None
    scores: Scores
    vectors: tuple[Tensor, ...]

    def result(self) -> StepResult:
        """Wait, and hand the results out to the plan's work items."""
        samples = iter(self.chosen.to_samples(self.inputs.logits) if self.chosen else [])
        scores = iter(self.scores.to_logprobs())
        vectors = iter(self.vectors)
        return StepResult(tuple(_hand_out(w, samples, scores, vectors) for w in self.plan.work))


def _hand_out(
    work: Work, samples: Iterator[Sample], scores: Iterator[Logprobs], vectors: Iterator[Tensor]
) -> WorkResult:
    chosen = tuple(islice(samples, len(work.logits)))
    scored = tuple(islice(scores, len(work.scoring.targets) if work.scoring else 0))
    vector = next(vectors).cpu() if work.pool else None
    sound = all(sample.finite for sample in chosen)
    sound = sound and not any(math.isnan(score.chosen) for score in scored)
    if not sound or (vector is not None and not vector.isfinite().all()):
        return WorkResult(fault="the model gave something that is no number")
    return WorkResult(chosen, scored, None if vector is None else Pooled(vector.numpy().tobytes()))


class ModelRunner:
    """A model, its KV cache, and what they need to run a step.

    Args:
        ops: what the model is made of, and what samples.
        max_model_len: positions that can occur.
        pooling: how a sequence's vector is made.
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
    ) -> None:
        self._model = model
        self._ops = ops
        self._storage = storage
        self._backend = backend
        self._device = device
        self._pooling = pooling
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
        """Compute the plan's tokens, write their KV, sample its logit rows."""
        inputs = build_inputs(plan, self._device)
        hidden = self._hidden(inputs)
        chosen = None
        if inputs.logits:
            logits = self._model.logits(hidden[inputs.rows])
            allowed = None if masks is None else torch.from_numpy(masks.result())
            chosen = sample(logits, inputs.logits, self._ops, allowed)
        scores = score(self._model.logits, hidden, inputs, self._ops)
        return Handle(plan, inputs, chosen, scores, self._vectors(plan, hidden))

    @torch.inference_mode()
    def probe(self) -> None:
        """Raise if the device computes nothing any more, as CUDA after an illegal address does."""
        self._pulse.add_(1)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def hidden_states(self, plan: StepPlan) -> Tensor:
        """Compute the plan's tokens and write their KV: [T, H], what ``model.logits`` takes."""
        return self._hidden(build_inputs(plan, self._device)).clone()

    @property
    def model(self) -> Model:
        return self._model

    @property
    def forward(self) -> Forward:
        """What runs the model in a step; for benchmarks."""
        return self._forward

    def _hidden(self, inputs: StepInputs) -> Tensor:
        return self._forward(inputs.ids, self._step(inputs))

    def _vectors(self, plan: StepPlan, hidden: Tensor) -> tuple[Tensor, ...]:
        """The vector of every work item that wants one, in fp32."""
        parts = hidden.split([len(work.tokens) for work in plan.work])
        pairs = zip(plan.work, parts, strict=True)
        return tuple(pool(part, self._pooling) for work, part in pairs if work.pool)

    def _step(self, inputs: StepInputs) -> Step:
        metas = tuple(
            self._backend.prepare(
                inputs.starts, inputs.lengths, tables, null, group.window, group.causal
            )
            for tables, group, null in zip(
                inputs.tables, self._storage.groups, self._storage.null_blocks, strict=True
            )
        )
        return Step(
            positions=inputs.positions,
            ropes=Angles(self._ropes, inputs.positions),
            backend=self._backend,
            metas=metas,
            storage=self._storage,
        )
