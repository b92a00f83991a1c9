"""``rosellm train CONFIG.toml``, or torchrun with ``-m rosellm.rosetrainer.train CONFIG.toml``.

The loop itself. A step depends on the weights, the optimizer's state, the position in the data
and its own number, all of which a checkpoint holds; noise (dropout) is seeded by step and process.
So a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rosellm.roseinfer.errors import ConfigError, RosellmError
from rosellm.rosetrainer import commands
from rosellm.rosetrainer.checkpoint import load_checkpoint, save_checkpoint
from rosellm.rosetrainer.config import TrainConfig, load_config
from rosellm.rosetrainer.data import Batch, Ints, Position, Stream, Tokens, in_order, parts
from rosellm.rosetrainer.files import one_line_errors
from rosellm.rosetrainer.heap import return_large_buffers
from rosellm.rosetrainer.model import LanguageModel, Llama, as_dict, build_model, shape_of
from rosellm.rosetrainer.optimizer import learning_rate, make_optimizer
from rosellm.rosetrainer.parallel import Group, process_group
from rosellm.rosetrainer.plot import draw_losses
from rosellm.rosetrainer.prepare import prepare
from rosellm.rosetrainer.progress import Log, Progress, line
from rosellm.rosetrainer.start import take_weights

LAST, BEST = "last.pt", "best.pt"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of ``python -m rosellm.rosetrainer.train``; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rosellm.rosetrainer.train", description="Train a model.", allow_abbrev=False
    )
    commands.add_train_flags(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except RosellmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Train as a parsed command line says."""
    train(
        load_config(args.config, args.set),
        prepare_only=args.prepare_only,
        fresh=args.fresh,
        stop_after=None if args.stop_after is None else 60 * args.stop_after,
    )
    return 0


def train(
    config: TrainConfig,
    *,
    prepare_only: bool = False,
    fresh: bool = False,
    stop_after: float | None = None,
) -> None:
    """Train to the end, or as far as time allows.

    Args:
        prepare_only: make the token cache and leave.
        fresh: start over where there is a checkpoint to go on from.
        stop_after: seconds after which to save and leave.

    Raises:
        ConfigError: sources, config or disk do not allow it, or the loss is no longer a number.
    """
    deadline = None if stop_after is None else time.monotonic() + stop_after
    return_large_buffers()
    with process_group(config.run.device) as group, Progress(shown=group.is_first) as progress:
        manifest = _prepared(config, group, progress)
        if not prepare_only:
            with _signals() as signalled:
                trainer = Trainer(config, manifest, group, progress, fresh=fresh)
                trainer.run(lambda: signalled() or _passed(deadline))


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _prepared(config: TrainConfig, group: Group, progress: Progress) -> dict[str, Any]:
    """The first process prepares the data, the others find it done."""
    manifest = prepare(config, progress.say) if group.is_first else None
    group.wait()
    return manifest or prepare(config, lambda _: None)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a checkpoint and an end, instead of ending at once."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, _: seen.append(number))
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """One run: model, optimizer, data and where they stand.

    Attributes:
        step: steps that are done.
        best: least validation loss so far.
    """

    def __init__(
        self,
        config: TrainConfig,
        manifest: dict[str, Any],
        group: Group,
        progress: Progress,
        *,
        fresh: bool,
    ) -> None:
        self.config, self.group, self.progress = config, group, progress
        self.out = config.path(config.run.out)
        self.step, self.best, self.valid_loss = 0, math.inf, math.inf
        self._share, self._micro = _shares(config, group.size)
        self._identity = _identity(config, manifest)
        self._source = _source(config)
        cache = config.path(config.data.cache)
        self.tokens = Tokens(cache, "train", config.data.seq_len)
        valid = Tokens(cache, "valid", config.data.seq_len)
        self.validation = valid, in_order(valid, config.run.eval_sequences)
        self.shape = as_dict(shape_of(config, manifest["vocab_size"], manifest["stems"]))
        self.dtype = choose_dtype(config.run.dtype, group.device)
        torch.set_float32_matmul_precision("high")  # TF32, where float32 meets a GPU
        torch.manual_seed(config.run.seed)
        self.model = build_model(self.shape).to(group.device)
        if isinstance(self.model, Llama):
            self.model.tell_forms(self._source["tokenizer"])
        self.model.recompute = config.run.activation_checkpointing
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype is torch.float16)
        position = self._resume(fresh)
        self.stream = Stream(self.tokens, config.run.seed, position)
        self._callable, self._no_sync = _wrapped(self.model, group, config.run.compile)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=group.device)
        self._norm = torch.zeros((), device=group.device)

    # -- the loop ------------------------------------------------------------------

    def run(self, stopped: Callable[[], bool]) -> None:
        """Step until the last step, or until ``stopped``; a checkpoint is left in any case."""
        run = self.config.run
        if self.group.is_first:
            with one_line_errors(f"run.out {self.out}"):
                self.out.mkdir(parents=True, exist_ok=True)
            self.log = Log(self.out / "log.jsonl", self.step)
        self._describe()
        clock, leaving = _Clock(self.step), False
        while self.step < run.steps and not leaving:
            self._train_step()
            last = self.step == run.steps
            if self.step % run.log_every == 0 or last:
                self._report(clock)
            if self.step % run.eval_every == 0 or last:
                self._evaluate(clock)
            leaving = self._agree(stopped)
            if self.step % run.save_every == 0 or last or leaving:
                self._save(LAST, clock)
        self._close(leaving)

    def _agree(self, stopped: Callable[[], bool]) -> bool:
        """Whether to leave. Several processes ask each other, and not at every step."""
        if self.group.size > 1 and self.step % self.config.run.log_every:
            return False
        return self.group.any(stopped())

    def _train_step(self) -> None:
        section = self.config.optimizer
        rate = learning_rate(self.step, self.config.run.steps, section)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self._seed_noise()
        self._accumulate()
        self.scaler.unscale_(self.optimizer)
        limit = section.clip or math.inf
        self._norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _accumulate(self) -> None:
        """Gradients of the mean loss over all targets of the step, in all processes."""
        rows = self.stream.take(self.config.run.batch_size)
        targets = sum(int(self.tokens.learned[row].sum()) for row in rows)
        mine = rows[self.group.rank * self._share :][: self._share]
        self.model.train()
        for start in range(0, self._share, self._micro):
            last = start + self._micro == self._share
            with nullcontext() if last else self._no_sync():
                loss = self._loss(self._callable, self.tokens, mine[start : start + self._micro])
                # Gradients are averaged over processes, hence their number.
                loss = loss * (self.group.size / targets)
                self.scaler.scale(loss).backward()
            self._loss_sum += loss.detach() / self.group.size

    def _loss(self, model: Callable[..., Tensor], tokens: Tokens, rows: Sequence[Ints]) -> Tensor:
        """Loss over some sequences, summed over their targets."""
        arguments = self._on_device(tokens.batch(rows))
        with torch.autocast(
            self.group.device.type, self.dtype, enabled=self.dtype is not torch.float32
        ):
            return model(*arguments)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """What the model takes: ids, positions, where there are targets, and those."""
        device = self.group.device

        def put(array: Ints) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if device.type == "cuda":  # pinned, so that the copy need not be waited for
                tensor = tensor.pin_memory()
            return tensor.to(device, non_blocking=True)

        positions = put(batch.positions) if self.config.data.mask_documents else None
        return put(batch.inputs), positions, put(batch.where), put(batch.targets)

    def _seed_noise(self) -> None:
        if self.config.model.dropout:
            entropy = [self.config.run.seed, self.step, self.group.rank]
            seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))

    # -- what is said and measured ---------------------------------------------------

    def _describe(self) -> None:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        on = f"{self.group.size} x {self.group.device.type}, {str(self.dtype)[6:]}"
        begin = f"; going on from step {self.step}" if self.step else ""
        self.progress.say(f"{count:,} parameters on {on}{begin}")

    def _report(self, clock: _Clock) -> None:
        loss = self.group.sum(self._loss_sum).item()
        steps, seconds = clock.lap(self.step)
        loss /= max(steps, 1)
        self._loss_sum.zero_()
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss is {loss} at step {self.step}: try a smaller optimizer.lr, more "
                f"optimizer.warmup_steps or run.dtype = 'float32'; checkpoints are in {self.out}"
            )
        if not self.group.is_first:
            return
        run = self.config.run
        rate = steps * run.batch_size * self.config.data.seq_len / max(seconds, 1e-9)
        left = (run.steps - self.step) * seconds / max(steps, 1)
        self.log.add(
            step=self.step,
            loss=loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=self._norm.item(),
            tokens=self.step * run.batch_size * self.config.data.seq_len,
            tokens_per_s=rate,
            epoch=self.stream.position.epoch,
        )
        self.progress.show(line(self.step, run.steps, loss, self.valid_loss, rate, left))

    def _evaluate(self, clock: _Clock) -> None:
        _tokens, rows = self.validation
        if not rows:
            return
        with clock.paused():
            loss = self.validate()
            if self.group.is_first:
                self.log.add(step=self.step, val_loss=loss)
                self.progress.say(f"step {self.step}: validation loss {loss:.4f}, "
                                  f"perplexity {math.exp(min(loss, 99)):.2f}")  # fmt: skip
        self.valid_loss = loss
        if loss < self.best:
            self.best = loss
            self._save(BEST, clock)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss in nats over the validation targets."""
        tokens, rows = self.validation
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        self.model.eval()
        for some in parts(rows[self.group.rank :: self.group.size], self._micro):
            total += self._loss(self.model, tokens, some)
        targets = sum(int(tokens.learned[row].sum()) for row in rows)
        return self.group.sum(total).item() / targets

    # -- checkpoints -----------------------------------------------------------------

    def _save(self, name: str, clock: _Clock) -> None:
        if self.group.is_first:
            with clock.paused():
                save_checkpoint(self.out / name, self._checkpoint())

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "config": self.shape,
            "scheduler": {"last_epoch": self.step, "base_lrs": [self.config.optimizer.lr]},
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "extra": {
                "identity": self._identity,
                "position": self.stream.state(),
                "best": self.best,
                "valid_loss": self.valid_loss,
                "tokens": self.step * self.config.run.batch_size * self.config.data.seq_len,
                **self._source,
            },
        }

    def _resume(self, fresh: bool) -> Position | None:
        """Take up the last checkpoint, where there is one. Returns the position in the data."""
        path = self.out / LAST
        if fresh or not path.exists():
            if self.config.run.start_from:
                take_weights(self.model, self.config.path(self.config.run.start_from))
            return None
        content = load_checkpoint(path)
        extra = content["extra"]
        for name, value in self._identity.items():
            if extra["identity"].get(name) != value:
                raise ConfigError(
                    f"{path} was trained with a different {name}; --fresh starts over, or choose "
                    "another run.out"
                )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.best, self.valid_loss = content["step"], extra["best"], extra["valid_loss"]
        return Position(**extra["position"])

    def _close(self, leaving: bool) -> None:
        if not self.group.is_first:
            return
        if leaving and self.step < self.config.run.steps:
            self.progress.say(f"stopped at step {self.step}; the same command goes on from there")
        else:
            self.progress.say(f"finished {self.step} steps: {self.out / LAST}")
        self.progress.say(draw_losses(self.out / "log.jsonl", self.out / "loss.png"))


class _Clock:
    """Time spent on steps since the last lap, without pauses."""

    def __init__(self, step: int) -> None:
        self._since, self._step = time.perf_counter(), step

    def lap(self, step: int) -> tuple[int, float]:
        """Steps and seconds since the last lap."""
        now = time.perf_counter()
        lap = step - self._step, now - self._since
        self._since, self._step = now, step
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before


def _shares(config: TrainConfig, size: int) -> tuple[int, int]:
    """Sequences of a step for each process, and how many of them it takes in one pass."""
    run = config.run
    if run.batch_size % size:
        raise ConfigError(f"run.batch_size ({run.batch_size}) is no multiple of {size} processes")
    share = run.batch_size // size
    micro = min(run.micro_batch_size or share, share)
    if share % micro:
        raise ConfigError(
            f"a process's share of run.batch_size ({share}) is no multiple of run.micro_batch_size"
        )
    return share, micro


def _identity(config: TrainConfig, manifest: dict[str, Any]) -> dict[str, Any]:
    """What must be as it was when a checkpoint is taken up, under the names of its complaint."""
    data = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    shape = as_dict(shape_of(config, manifest["vocab_size"], manifest["stems"]))
    return {
        "model": shape,
        "data": data,
        "data.seq_len": config.data.seq_len,
        "run.seed": config.run.seed,
    }


def _source(config: TrainConfig) -> dict[str, Any]:
    """What an export needs beside the weights, and what a reader may want to know."""
    cache = config.path(config.data.cache)
    whole = json.loads(json.dumps(asdict(config), default=str))
    del whole["folder"]
    return {
        "train_config": whole,
        "tokenizer": (cache / "tokenizer.json").read_text(encoding="utf-8"),
        "chat_template": (cache / "chat_template.jinja").read_text(encoding="utf-8"),
    }


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Type to compute in; weights and optimizer are float32 in any case."""
    if wanted == "auto" and device.type == "cpu":
        return torch.float32
    if wanted == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if wanted == "float16" and device.type == "cpu":
        raise ConfigError("run.dtype float16 is for GPUs; on a CPU take float32 or bfloat16")
    chosen: torch.dtype = getattr(torch, wanted)
    return chosen


def _wrapped(
    model: LanguageModel, group: Group, compiled: bool
) -> tuple[Callable[..., Tensor], Callable[[], AbstractContextManager[None]]]:
    """The model as a step calls it, and what keeps passes before the last from synchronising."""
    module: nn.Module = model
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    if group.size > 1:
        module = DistributedDataParallel(model)
        no_sync = module.no_sync
    if compiled:
        module = torch.compile(module)  # type: ignore[assignment]
    return module, no_sync


if __name__ == "__main__":
    sys.exit(main())
