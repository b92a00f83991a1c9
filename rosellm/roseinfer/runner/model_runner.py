"""Runs a plan on the model: ``execute(plan)`` starts it, ``handle.result()`` waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch

from rosellm.roseinfer.attention.base import AttentionBackend
from rosellm.roseinfer.cache.storage import KVStorage
from rosellm.roseinfer.layers.attention import Step
from rosellm.roseinfer.layers.rope import RopeTable
from rosellm.roseinfer.models.skeleton import Model
from rosellm.roseinfer.runner.inputs import StepInputs, build_inputs
from rosellm.roseinfer.runner.sampler import Chosen, sample
from rosellm.roseinfer.step import StepPlan, StepResult


@dataclass(frozen=True)
class Handle:
    """A submitted plan. On a GPU the work may still be running."""

    plan: StepPlan
    inputs: StepInputs
    chosen: Chosen | None

    def result(self) -> StepResult:
        """Wait, and hand the samples out to the plan's work items."""
        samples = iter(self.chosen.to_samples(self.inputs.logits) if self.chosen else [])
        return StepResult(
            tuple(tuple(islice(samples, len(work.logits))) for work in self.plan.work)
        )


class ModelRunner:
    """A model, its KV cache, and what they need to run a step.

    Args:
        max_model_len: positions that can occur.
    """

    def __init__(
        self,
        model: Model,
        storage: KVStorage,
        backend: AttentionBackend,
        device: torch.device,
        max_model_len: int,
    ) -> None:
        self._model = model
        self._storage = storage
        self._backend = backend
        self._device = device
        spec = model.spec
        self._ropes = {
            rope: RopeTable(rope, max_model_len, device)
            for rope in map(spec.rope_of, range(spec.num_layers))
            if rope is not None
        }

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> Handle:
        """Compute the plan's tokens, write their KV, sample its logit rows."""
        inputs = build_inputs(plan, self._device)
        hidden = self._model(inputs.ids, self._step(inputs))
        chosen = None
        if inputs.logits:
            chosen = sample(self._model.logits(hidden[inputs.rows]), inputs.logits)
        return Handle(plan, inputs, chosen)

    def _step(self, inputs: StepInputs) -> Step:
        metas = tuple(
            self._backend.prepare(inputs.starts, inputs.lengths, tables, group.window, group.causal)
            for tables, group in zip(inputs.tables, self._storage.groups, strict=True)
        )
        return Step(
            positions=inputs.positions,
            ropes={rope: table.at(inputs.positions) for rope, table in self._ropes.items()},
            backend=self._backend,
            metas=metas,
            storage=self._storage,
        )
