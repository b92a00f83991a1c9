"""``rosellm plan``: the memory that serving a model takes with these flags. Loads no weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from rosellm.commands.footprint import Footprint
from rosellm.commands.inspect import with_local_description
from rosellm.commands.tables import show_facts, size
from rosellm.roseinfer import host_memory
from rosellm.roseinfer.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from rosellm.roseinfer.errors import RosellmError
from rosellm.roseinfer.host_memory import Resident
from rosellm.roseinfer.server import flags

if TYPE_CHECKING:
    from rosellm.roseinfer.runner.choices import Choices
    from rosellm.roseinfer.runner.plan import MemoryPlan, Needs

Facts = Iterator[tuple[str, str]]

EXAMPLES = """\
The settings are those of rosellm serve, from flags, ROSELLM_ variables and --config alike. It goes
by the same arithmetic: what does not fit is refused there before anything is loaded. The peak is
counted with every block of the KV cache written; the cache takes memory as tokens come, so a server
that was just started shows less.
Exit code 0: it fits. 1: it does not; what would is said.

examples:
  rosellm plan path/to/my-llama
  rosellm plan path/to/my-llama --quantization int8 --max-model-len 8192
  rosellm plan org/name --memory-gb 16 --json
  rosellm plan --config server.toml
"""

_GIB = 1 << 30
_SHORTEST = 256


def add_flags(command: flags.Parser) -> None:
    """Add the flags of ``rosellm plan``."""
    command.formatter_class = flags.Help
    command.usage = "%(prog)s [MODEL] [options]"
    command.epilog = EXAMPLES
    flags.add_model(command)
    flags.add_config_file(command)
    for config in (ModelConfig, CacheConfig, SchedulerConfig):
        flags.add_group(command, config)
    group = command.add_argument_group("Plan")
    group.add_argument("--json", action="store_true", help="print one JSON object instead")
    group.add_argument(
        "--memory-gb",
        type=_positive,
        metavar="X",
        help="plan for a machine or container with so many GiB; default: what is free here now",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def run(args: argparse.Namespace) -> int:
    """Show the plan. Returns the exit code.

    Raises:
        RosellmError: there is no such model, or the flags cannot be met on any machine.
    """
    asked = flags.engine_config(flags.settings_of(vars(args)))
    flags.check_sources(asked.model)
    config = replace(asked, model=with_local_description(asked.model))
    told = _plan(config, args.memory_gb)
    if args.json:
        print(json.dumps({"model": asked.model.model, **told.as_json()}))
    else:
        show_facts(asked.model.model, told.facts())
    return 1 if told.refusal else 0


def _plan(config: EngineConfig, memory_gb: float | None) -> Told:
    measured = Footprint(config.model.tokenizer or config.model.model)
    try:
        from rosellm.commands.model_facts import choices, find
        from rosellm.roseinfer.engine import build  # noqa: F401 - what the engine's process holds
        from rosellm.roseinfer.runner import memory
        from rosellm.roseinfer.runner.plan import needs_of, plan_memory

        made = choices(config, find(config.model.model))
        engine, api = host_memory.resident(), measured.result()
        taken = api.total if api else 0
        if memory_gb is None:
            free = memory.available(made.device) - taken * (made.device.type == "cpu")
        else:
            own = (taken + (engine.total if engine else 0)) * (made.device.type == "cpu")
            free = int(memory_gb * _GIB) - own
        try:
            plan, refusal = plan_memory(made, free), ""
        except RosellmError as error:
            plan, refusal = None, str(error)
        needs = plan.needs if plan else needs_of(made)
        return Told(made, needs, plan, refusal, free, engine, api)
    finally:
        measured.stop()


class Told:
    """A plan, and how it is told.

    Args:
        refusal: why it does not fit, and what would; empty where it does.
        free: bytes for what the engine allocates.
        engine, api: what both processes take before that.
    """

    def __init__(
        self,
        made: Choices,
        needs: Needs,
        plan: MemoryPlan | None,
        refusal: str,
        free: int,
        engine: Resident | None,
        api: Resident | None,
    ) -> None:
        self.made, self.needs, self.plan, self.refusal, self.free = made, needs, plan, refusal, free
        self.engine = engine.total if engine else 0
        self.api = api.total if api else 0

    def facts(self) -> Facts:
        """Names and values, in the order to be shown."""
        made, needs, plan = self.made, self.needs, self.plan
        for decision in (*made.decisions, *made.kv_decisions, made.step_decision):
            yield decision.name, f"{decision.value} ({decision.reason})"
        yield "kernels", f"{made.ops.name} ({made.ops.reason})"
        yield "weights", f"{size(needs.weights)}, {self._held()}"
        per_token = sum(group.bytes_per_token(made.kv_dtype) for group in made.spec.kv_groups)
        yield "KV cache, a token", size(per_token)
        if plan is not None:
            context, cache = plan.cache.decisions
            yield "KV cache", f"{size(plan.cache_bytes)}: {cache.value} ({cache.reason})"
            yield "context", f"{context.value} ({context.reason})"
        yield "positions", f"{size(needs.tables)} of rotary tables"
        yield "a step", f"{size(needs.step)} of activations, workspaces and logits"
        yield "", f"{size(needs.extras)} more where every row has penalties and logprobs"
        if needs.buffers:
            yield "buffers", f"{size(needs.buffers)} that steps are sent through"
        if needs.graphs:
            yield "CUDA graphs", f"{size(needs.graphs)} at most"
        yield "while loading", f"{size(needs.loading)} beside the weights"
        yield "engine process", f"{size(self.engine)} of interpreter, torch and kernels"
        yield "server process", f"{size(self.api)} with its tokenizer"
        if plan is not None:
            yield "peak", f"{size(self.peak)} in all, {size(self.engine + plan.peak)} in the engine"
        yield "free", f"{size(max(self.free, 0))} for what the engine allocates"
        yield "fits", "yes" if plan is not None else f"no: {self.refusal}"
        for length, count in self._concurrency():
            yield f"of {length:,} tokens", f"{count:,} at a time{self._why(count)}"

    @property
    def peak(self) -> int:
        """Of both processes."""
        return self.api + self.engine + (self.plan.peak if self.plan else 0)

    def as_json(self) -> dict[str, Any]:
        """The same for programs; sizes are bytes."""
        made, plan = self.made, self.plan
        spec = made.spec
        return {
            "fits": plan is not None,
            "reason": self.refusal or None,
            "device": str(made.device),
            "dtype": str(made.dtype).removeprefix("torch."),
            "kv_cache_dtype": str(made.kv_dtype).removeprefix("torch."),
            "quantization": {
                part: form.name if form else None
                for part, form in (("layers", made.recipe.layers), ("head", made.recipe.head))
            },
            "kernels": made.ops.name,
            "weights_bytes": self.needs.weights,
            "kv_bytes_per_token": [g.bytes_per_token(made.kv_dtype) for g in spec.kv_groups],
            "kv_cache_bytes": plan.cache_bytes if plan else None,
            "kv_cache_tokens": plan.cache.capacity_tokens if plan else None,
            "kv_cache_blocks": list(plan.cache.num_blocks) if plan else None,
            "block_size": made.config.cache.block_size,
            "max_model_len": plan.cache.max_model_len if plan else None,
            "step_tokens": made.step_tokens,
            "step_bytes": self.needs.step,
            "step_extra_bytes": self.needs.extras,
            "tables_bytes": self.needs.tables,
            "loading_bytes": self.needs.loading,
            "buffer_bytes": self.needs.buffers,
            "graph_bytes": self.needs.graphs,
            "engine_process_bytes": self.engine,
            "server_process_bytes": self.api,
            "engine_peak_bytes": self.engine + plan.peak if plan else None,
            "peak_bytes": self.peak if plan else None,
            "free_bytes": max(self.free, 0),
            "concurrency": [
                {"tokens": length, "requests": count} for length, count in self._concurrency()
            ],
            "decisions": [
                asdict(each) for each in (*made.decisions, *made.kv_decisions, made.step_decision)
            ],
        }

    def _held(self) -> str:
        from rosellm.roseinfer.runner import resolve

        told = resolve.explain_quantization(self.made.recipe, "")
        kind = str(self.made.dtype).removeprefix("torch.")
        return f"{told[0].value}, the rest {kind}" if told else kind

    def _concurrency(self) -> Iterator[tuple[int, int]]:
        """Requests of some lengths, prompt and answer together, that can run at the same time."""
        if self.plan is None:
            return
        longest = self.plan.cache.max_model_len
        length = _SHORTEST
        while length < longest:
            yield length, self.plan.cache.sequences(length)
            length *= 4
        yield longest, self.plan.cache.sequences(longest)

    def _why(self, count: int) -> str:
        limit = self.made.config.scheduler.max_num_seqs
        return ", by --max-num-seqs" if count == limit else ""
