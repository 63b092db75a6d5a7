"""The training loop: draws a batch, applies the method's updates, remembers where it stands."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from semisup.config import OptimizerConfig, ScheduleConfig
from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.engine.device import autocast
from semisup.engine.optim import build_optimizers, learning_rate, set_learning_rates
from semisup.engine.seeding import seed_for
from semisup.errors import SemisupError
from semisup.methods import Batch, Method, Progress, PseudoLabels, Update
from semisup.models import EMA

__all__ = ["FitResult", "NonFiniteLossError", "Stopped", "fit"]


class NonFiniteLossError(SemisupError):
    """A loss term became NaN or infinite."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after the checkpoint was written."""


class BatchSource(Protocol):
    """Step -> batch, and how many source images a batch holds."""

    @property
    def images_per_step(self) -> int:
        """Source images in a batch."""

    def __call__(self, step: int) -> Batch:
        """The batch of one step."""


@dataclass
class FitResult:
    """What a fit leaves, beside the trained method."""

    ema: EMA | None
    """Average of the predictor's weights, if one was asked for."""
    seconds: float
    """Wall-clock of the loop, over all sittings."""
    images_per_second: float
    """Source images, labeled and unlabeled."""
    resumed_from: int | None
    """Step that a checkpoint led back to."""
    log: dict[str, float] = field(default_factory=dict)
    """Terms of the last logged window."""


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn Ctrl-C into a flag that the loop reads between steps, so that a checkpoint is never of half a step."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # signals reach the main thread only
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt  # the second time, at once
        pressed.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


class _Window:
    """Sums of logged terms since the last report, and the first step at which each was not finite, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.first_bad: dict[str, Tensor] = {}

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            bad = torch.where(value.isfinite(), torch.inf, float(step))
            if name in self.sums:
                self.sums[name] += value
                self.first_bad[name] = torch.minimum(self.first_bad[name], bad)
            else:
                self.sums[name], self.first_bad[name] = value.clone(), bad
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """Means, and term -> first bad step. The one place where the host waits for the device."""
        if not self.sums:
            return {}, {}
        names = list(self.sums)
        sums = torch.stack([self.sums[name] for name in names]).tolist()
        first = torch.stack([self.first_bad[name] for name in names]).tolist()
        means = {name: total / self.counts[name] for name, total in zip(names, sums, strict=True)}
        bad = {name: int(step) for name, step in zip(names, first, strict=True) if step != float("inf")}
        self.sums, self.counts, self.first_bad = {}, {}, {}
        return means, bad


class _Run:
    """Everything of a fit that a checkpoint must hold."""

    def __init__(
        self, method: Method, optimizer: OptimizerConfig, ema: float | None, device: torch.device, precision: str
    ) -> None:
        self.method = method
        self.optimizers = build_optimizers(method, optimizer)
        self.ema = None if ema is None else EMA(method.predictor(), ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.step = 0
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.seconds = state["seconds"]

    def apply(self, update: Update, clip: float | None) -> None:
        """Backward, clip, step, zero, for one of the method's groups."""
        optimizer = self.optimizers[update.group]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Only this group's gradients are computed: the teacher's update must not leave gradients in the student.
        self.scaler.scale(update.loss).backward(inputs=parameters)
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


def fit(
    method: Method,
    batches: BatchSource,
    *,
    steps: int,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    ema: float | None = None,
    device: torch.device,
    precision: str = "fp32",
    key: tuple[object, ...] = (0,),
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    log_every: int = 20,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    judge: Callable[[PseudoLabels], dict[str, Tensor]] | None = None,
) -> FitResult:
    """Train `method` for `steps` steps; it is trained in place.

    A checkpoint at `checkpoint` is resumed. Global random state (dropout, a method's own draws) is reseeded at every
    step from `key`, so that a resumed run repeats exactly what an uninterrupted one does.

    Args:
        method: on `device` already.
        batches: step -> batch.
        steps: length of the run; the schedule's total.
        optimizer: settings of the optimizer of every group; `clip` bounds the gradient norm of each update.
        schedule: learning rate over the run.
        ema: decay of the average of the predictor's weights, or None.
        device: of the method and the batches.
        precision: fp32, bf16 or fp16.
        key: seed and stage name.
        checkpoint: file to resume from and write to; None keeps nothing.
        checkpoint_seconds: least time between checkpoints.
        log_every: steps between reports. Losses are checked for being finite then, and before each checkpoint.
        on_log: gets the number of finished steps and the means of the logged terms since the last report.
        judge: compares a step's pseudo-labels with the hidden labels; its terms are logged too.

    Raises:
        NonFiniteLossError: names the step and the terms; the last checkpoint from before it is kept.
        Stopped: Ctrl-C; a checkpoint was written first.
    """
    run = _Run(method, optimizer, ema, device, precision)
    resumed_from = None
    if checkpoint is not None and checkpoint.exists():
        run.load(load_checkpoint(checkpoint, device))
        resumed_from = run.step
    window, last_log = _Window(device), {}
    started = saved = time.perf_counter()
    before = run.seconds

    def report() -> None:
        nonlocal last_log
        means, bad = window.read()
        if bad:
            step = min(bad.values())
            terms = ", ".join(sorted(name for name, first in bad.items() if first == step))
            kept = f"; the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else ""
            raise NonFiniteLossError(f"step {step}: not finite: {terms}{kept}. Try a smaller learning rate or clipping")
        last_log = means | {"lr": next(iter(run.optimizers.values())).param_groups[0]["lr"]}
        on_log(run.step, last_log)

    def save() -> None:
        if checkpoint is not None:
            run.seconds = before + time.perf_counter() - started
            save_checkpoint(checkpoint, run.state())

    method.train()
    with _deferred_interrupt() as interrupted:
        while run.step < steps:
            step = run.step
            torch.manual_seed(seed_for(*key, "step", step))
            set_learning_rates(run.optimizers.values(), learning_rate(schedule, step, steps))
            updates = method.step(batches(step), Progress(step, steps))
            while True:
                with autocast(device, precision):
                    update = next(updates, None)
                if update is None:
                    break
                run.apply(update, optimizer.clip)
                window.add(step, {f"loss/{update.group}": update.loss, **update.log})
                if judge is not None and update.pseudo_labels is not None:
                    window.add(step, judge(update.pseudo_labels))
            if run.ema is not None:
                run.ema.update(method.predictor())
            run.step += 1
            due = time.perf_counter() - saved > checkpoint_seconds
            if run.step % log_every == 0 or run.step == steps or due or interrupted.is_set():
                report()
            if due or interrupted.is_set():
                save()
                saved = time.perf_counter()
            if interrupted.is_set():
                raise Stopped
    run.seconds = before + time.perf_counter() - started
    rate = steps * batches.images_per_step / run.seconds if run.seconds > 0 else float("nan")
    return FitResult(run.ema, run.seconds, rate, resumed_from, last_log)
