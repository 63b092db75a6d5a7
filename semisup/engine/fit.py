"""The training loop: draws a batch, applies the method's updates, remembers where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from semisup.config import OptimizerConfig, ScheduleConfig
from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.engine.device import autocast
from semisup.engine.optim import build_optimizers, learning_rate, set_learning_rates
from semisup.engine.seeding import seed_for, seed_global
from semisup.errors import SemisupError
from semisup.evaluate import collapse_panel, collapsed
from semisup.methods import Batch, Method, Progress, PseudoLabels, Update
from semisup.models import EMA
from semisup.signals import deferred

__all__ = ["CollapseError", "FitResult", "NonFiniteLossError", "Stopped", "fit"]


PANEL = "collapse/"
"""What the names of the measures of embeddings begin with in the log."""
GRACE = 0.1
"""Part of the steps in which embeddings may be collapsed: a fresh network's may well be, before it has learned."""


class NonFiniteLossError(SemisupError):
    """A loss term became NaN or infinite."""


class CollapseError(SemisupError):
    """The embeddings have become one and the same for all images, or lie on a line."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, after the checkpoint was written."""


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


class _Window:
    """Logged terms since the last report, on the device: for each its sum, its count and its first bad step."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, ...], Tensor] = {}
        """Names -> (3, number of names): terms that come together are added together, in a handful of kernels."""

    def add(self, step: int, values: dict[str, Tensor], *, judged: bool = False) -> None:
        """Count the 0-d terms of one update. What is `judged` may be NaN: there was nothing to measure."""
        if not values:
            return
        row = torch.stack([value.detach().float() for value in values.values()])
        finite = row.isfinite()
        first_bad = torch.full_like(row, torch.inf) if judged else torch.where(finite, torch.inf, float(step))
        new = torch.stack([torch.where(finite, row, 0.0), finite.float(), first_bad])
        table = self.tables.get(names := tuple(values))
        if table is None:
            self.tables[names] = new
        else:
            table[:2] += new[:2]
            table[2] = torch.minimum(table[2], first_bad)

    def read(self) -> tuple[dict[str, float], dict[str, int]]:
        """Means of what was measured, and term -> first bad step. Here the host waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        bad: dict[str, int] = {}
        for names, table in self.tables.items():
            for name, (total, count, first) in zip(names, table.T.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + total
                counts[name] = counts.get(name, 0.0) + count
                if first != float("inf"):
                    bad[name] = min(int(first), bad.get(name, int(first)))
        return {name: total / counts[name] for name, total in sums.items() if counts[name]}, bad

    def clear(self) -> None:
        """Begin the next window."""
        self.tables = {}


class _Run:
    """Everything of a fit that a checkpoint must hold."""

    def __init__(
        self, method: Method, optimizer: OptimizerConfig, ema: float | None, device: torch.device, precision: str
    ) -> None:
        self.method = method
        self.optimizers = build_optimizers(method, optimizer)
        self.ema = None if ema is None else EMA(method.predictor(), ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.window = _Window()
        self.last_log: dict[str, float] = {}
        self.device = device
        self.step = 0
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "window": self.window.tables,
            "last_log": self.last_log,
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
        self.window.tables = {names: table.to(self.device) for names, table in state["window"].items()}
        self.last_log = state["last_log"]
        self.step = state["step"]
        self.seconds = state["seconds"]

    def check_finite(self) -> dict[str, float]:
        """Stop if a term was not finite, or if a finite loss has just spoilt the weights. Waits for the device.

        Returns:
            The window's means.

        Raises:
            NonFiniteLossError: names the first such step and its terms.
        """
        means, bad = self.window.read()
        step = min(bad.values(), default=self.step - 1)
        terms = sorted(name for name, first in bad.items() if first == step)
        if not bad:
            terms = [f"weights of '{name}'" for name, o in self.optimizers.items() if not _all_finite(_parameters(o))]
        if terms:
            raise NonFiniteLossError(f"step {step}: not finite: {', '.join(terms)}")
        return means

    def apply(self, update: Update, clip: float | None) -> None:
        """Backward, clip, step, zero, for one of the method's groups."""
        optimizer = self.optimizers[update.group]
        parameters = _parameters(optimizer)
        # Only this group's gradients are computed: the teacher's update must not leave gradients in the student.
        self.scaler.scale(update.loss).backward(inputs=parameters)
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


def _check_collapse(step: int, terms: dict[str, float]) -> None:
    """Stop if the logged measures of the embeddings show a collapse.

    Raises:
        CollapseError: names the step and the measure.
    """
    problem = collapsed({name.removeprefix(PANEL): v for name, v in terms.items() if name.startswith(PANEL)})
    if problem is not None:
        raise CollapseError(
            f"step {step}: the embeddings have collapsed, {PANEL}{problem}. Try a smaller learning rate, a larger "
            f"batch, or more weight on what keeps the embeddings apart (temperature, variance and covariance terms, "
            f"predictor and target network); stop_on_collapse: false trains on"
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _all_finite(tensors: list[Tensor]) -> bool:
    return bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())


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
    stop_on_collapse: bool = False,
    evaluate_every: int | None = None,
    on_evaluate: Callable[[int, nn.Module], None] = lambda step, predictor: None,
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
        log_every: steps between reports. Losses and weights are checked for being finite then, and before each
            checkpoint.
        on_log: gets the number of finished steps and the means of the logged terms since the last report. Steps and
            means are the same however often the run was killed.
        judge: compares a step's pseudo-labels with the hidden labels; its terms are logged too. NaN is left out.
        stop_on_collapse: stop when the embeddings that the method hands over have collapsed (see
            `semisup.evaluate.collapse`), looked at whenever the terms are reported, from a tenth of the steps on.
        evaluate_every: steps between calls of `on_evaluate`, which is also called after the last; None: never.
        on_evaluate: gets the number of finished steps and the network that would be judged now; must not change it.

    Raises:
        NonFiniteLossError: names the step and the terms; the last checkpoint from before it is kept.
        CollapseError: names the step and the measure.
        SemisupError: the checkpoint is damaged or of another run, or a new one cannot be written.
        Stopped: Ctrl-C; a checkpoint was written first. A second Ctrl-C does not wait for the end of the step.
    """
    run = _Run(method, optimizer, ema, device, precision)
    resumed_from = None
    if checkpoint is not None:
        for torn in checkpoint.parent.glob(f".{checkpoint.name}.*.tmp"):  # of a process killed while it wrote
            torn.unlink(missing_ok=True)
    if checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, torch.device("cpu"))  # a second copy on the device might not fit
        try:
            run.load(state)
        except (KeyError, RuntimeError, ValueError) as error:
            what = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise SemisupError(f"{checkpoint}: the checkpoint of another run ({what}); delete it to start") from error
        del state
        resumed_from = run.step
    started = saved = time.perf_counter()
    before = run.seconds

    def check() -> dict[str, float]:
        try:
            return run.check_finite()
        except NonFiniteLossError as error:
            kept = f"; the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else ""
            raise NonFiniteLossError(f"{error}{kept}. Try a smaller learning rate or clipping") from None

    def save() -> None:
        nonlocal saved
        if checkpoint is not None:
            check()
            run.seconds = before + time.perf_counter() - started
            save_checkpoint(checkpoint, run.state())
        saved = time.perf_counter()

    method.train()
    with deferred() as interrupted:
        while run.step < steps and not interrupted.is_set():
            step = run.step
            reported = (step + 1) % log_every == 0 or step + 1 == steps
            seed_global(seed_for(*key, "step", step), device)
            set_learning_rates(run.optimizers.values(), learning_rate(schedule, step, steps))
            updates = method.step(batches(step), Progress(step, steps))
            while True:
                with autocast(device, precision):
                    update = next(updates, None)
                if update is None:
                    break
                run.apply(update, optimizer.clip)
                run.window.add(step, {f"loss/{update.group}": update.loss, **update.log})
                if judge is not None and update.pseudo_labels is not None:
                    run.window.add(step, judge(update.pseudo_labels), judged=True)
                if update.embeddings is not None and reported:
                    panel = collapse_panel(*update.embeddings)
                    run.window.add(step, {PANEL + name: value for name, value in panel.items()}, judged=True)
            if run.ema is not None:
                run.ema.update(method.predictor())
            run.step += 1
            if reported:
                means = check()
                run.window.clear()
                run.last_log = means | {"lr": next(iter(run.optimizers.values())).param_groups[0]["lr"]}
                on_log(run.step, run.last_log)
                if stop_on_collapse and step >= GRACE * steps:
                    _check_collapse(step, means)
            if evaluate_every is not None and (run.step % evaluate_every == 0 or run.step == steps):
                paused = time.perf_counter()
                on_evaluate(run.step, method.predictor() if run.ema is None else run.ema.module)
                started += time.perf_counter() - paused  # looking is not training
            if time.perf_counter() - saved > checkpoint_seconds:
                save()
        if interrupted.is_set():
            save()
            raise Stopped
    run.seconds = before + time.perf_counter() - started
    rate = steps * batches.images_per_step / run.seconds if run.seconds > 0 else float("nan")
    return FitResult(run.ema, run.seconds, rate, resumed_from, run.last_log)
