"""Where a training run stands: everything that a checkpoint must hold, and what one step does to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor, nn

from semisup.engine import ranks
from semisup.engine.device import autocast
from semisup.engine.optim import build_optimizers, learning_rate, set_learning_rates
from semisup.engine.seeding import seed_for, seed_global
from semisup.engine.split import share_statistics
from semisup.engine.window import Window
from semisup.errors import SemisupError
from semisup.methods import Batch, Method, Progress, Update
from semisup.models import EMA, Classifier, Encoder
from semisup.models.freeze import first_blocks, freeze, thaw
from semisup.records import checked
from semisup.settings import OptimizerConfig, ScheduleConfig

__all__ = ["FitSettings", "NonFiniteLossError", "Training"]


class _Progress(BaseModel):
    """The numbers of a checkpoint."""

    model_config = ConfigDict(strict=True)

    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    last_log: dict[str, float]


_PROGRESS = TypeAdapter(_Progress)


class NonFiniteLossError(SemisupError):
    """A loss term became NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a method is trained."""

    steps: int
    """Length of the run; the schedule's total."""
    optimizer: OptimizerConfig
    """Of every parameter group; `clip` bounds the gradient norm of each update."""
    schedule: ScheduleConfig
    """Learning rate over the run."""
    device: torch.device
    """Of the method and the batches."""
    precision: str = "fp32"
    """fp32, bf16 or fp16."""
    ema: float | None = None
    """Decay of the average of the predictor's weights; None: no average."""
    key: tuple[object, ...] = (0,)
    """Seed and stage name. Global random state (dropout, a method's own draws) is seeded from it at every step."""
    frozen_until: tuple[int | None, int] | None = None
    """First blocks of the backbones (None: all of them) that do not learn before a step; None: nothing is so."""
    accumulate: int = 1
    """Batches whose gradients make one optimizer step, each a part of its own to the method."""
    sync_batchnorm: bool = True
    """On several ranks: BatchNorm within the networks sees the images of all of them; else each its own, and the
    running statistics are rank 0's."""
    log_every: int = 20
    """Steps between reports. Losses and weights are checked for being finite then, and before each checkpoint."""


class Training:
    """A method, its optimizers, the average of its weights, and how many steps are done.

    Attributes:
        step: finished steps.
        terms: means of the terms of the last report.
        kept: the last checkpoint, for a message when something goes wrong.
    """

    def __init__(self, method: Method, settings: FitSettings) -> None:
        self.method = method
        self.settings = settings
        self.optimizers = build_optimizers(method, settings.optimizer)  # of what learns later, too: has no state yet
        self.ema = None if settings.ema is None else EMA(method.predictor(), settings.ema)
        self.scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.precision == "fp16")
        self.window = Window()
        self.terms: dict[str, float] = {}
        self.step = 0
        self.kept: Path | None = None
        if settings.frozen_until is not None:
            for network in _networks(method):
                freeze(network, first_blocks(network.backbone, settings.frozen_until[0]))
        self._seconds = 0.0
        self._since = time.perf_counter()

    # State ------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint holds."""
        return {
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "window": self.window.tables,
            "last_log": self.terms,
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken.

        Raises:
            LookupError, TypeError, AttributeError, ValueError, RuntimeError: it is the state of something else.
        """
        checked(_PROGRESS, {name: state[name] for name in ("step", "seconds", "last_log")}, "its progress")
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        self.window.tables = {names: table.to(self.settings.device) for names, table in state["window"].items()}
        self.terms = state["last_log"]
        self.step = state["step"]
        self._seconds = state["seconds"]

    @property
    def seconds(self) -> float:
        """Wall-clock of the training so far, over all sittings."""
        return self._seconds + time.perf_counter() - self._since

    def start_clock(self) -> None:
        """Count the time from here on."""
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done meanwhile: looking is not training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    # A step -----------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every step is finished."""
        return self.step >= self.settings.steps

    @property
    def reports(self) -> bool:
        """Whether the terms are reported at the end of the present step."""
        return (self.step + 1) % self.settings.log_every == 0 or self.step + 1 == self.settings.steps

    def prepare(self) -> None:
        """Seed what draws from global random state, and set the learning rates of the present step."""
        settings = self.settings
        if settings.frozen_until is not None and self.step >= settings.frozen_until[1]:
            for network in _networks(self.method):
                thaw(network)
        seed_global(seed_for(*settings.key, "step", self.step), settings.device)
        set_learning_rates(self.optimizers.values(), learning_rate(settings.schedule, self.step, settings.steps))

    def updates(self, batches: Callable[[int], Batch]) -> Iterator[Update]:
        """Yield each update of the method after its gradient was taken, or applied if it is the step's last batch's.

        Args:
            batches: number -> batch. A step has one, the number being its own, or `accumulate` that follow each other.
        """
        parts = self.settings.accumulate
        for part in range(parts):
            with ranks.step_together():
                batch = batches(self.step * parts + part)
            updates = self.method.step(batch, Progress(self.step, self.settings.steps, part, parts))
            while True:
                with autocast(self.settings.device, self.settings.precision), ranks.step_together():
                    update = next(updates, None)
                if update is None:
                    break
                self._apply(update, last=part + 1 == parts)
                self.window.add(self.step, {f"loss/{update.group}": update.loss, **update.log})
                yield update

    def _apply(self, update: Update, *, last: bool) -> None:
        """Backward, for one of the method's groups, and with the last batch of a step: clip, step, zero."""
        optimizer, clip = self.optimizers[update.group], self.settings.optimizer.clip
        parameters = _trained(optimizer)
        parts = self.settings.accumulate
        # Only this group's gradients are computed: the teacher's update must not leave gradients in the student.
        self.scaler.scale(update.loss if parts == 1 else update.loss / parts).backward(inputs=parameters)
        if not last:
            return
        if ranks.size() > 1:
            ranks.average([p.grad for p in parameters if p.grad is not None])
        if clip is not None:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def finish_step(self) -> None:
        """Move the average of the weights and count the step."""
        if ranks.size() > 1 and not self.settings.sync_batchnorm:
            share_statistics(self.method)
        if self.ema is not None:
            self.ema.update(self.method.predictor())
        self.step += 1

    def predictor(self) -> nn.Module:
        """Return the network that would be evaluated now: the average, where there is one."""
        return self.method.predictor() if self.ema is None else self.ema.module

    # A report ---------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Return the means of the terms since the last report and the learning rate, and begin the next window.

        Raises:
            NonFiniteLossError: see `check_finite`; of several ranks one says it.
        """
        with ranks.agreeing():
            means = self.check_finite()
        self.window.clear()
        self.terms = means | {"lr": next(iter(self.optimizers.values())).param_groups[0]["lr"]}
        return self.terms

    def check_finite(self) -> dict[str, float]:
        """Return the window's means. Waits for the device.

        Raises:
            NonFiniteLossError: a term was not finite, or a finite loss has just spoilt the weights; names the first
                such step and its terms.
        """
        means, bad = self.window.read()
        step = min(bad.values(), default=self.step - 1)
        terms = sorted(name for name, first in bad.items() if first == step)
        if not bad:
            terms = [f"weights of '{name}'" for name, o in self.optimizers.items() if not _all_finite(_trained(o))]
        if terms:
            kept = f"; the last good checkpoint is {self.kept}" if self.kept is not None else ""
            raise NonFiniteLossError(
                f"step {step}: not finite: {', '.join(terms)}{kept}. Try a smaller learning rate or clipping"
            )
        return means


def _networks(method: Method) -> list[Classifier | Encoder]:
    """List a method's networks and their averages; a given teacher asks for no gradient and is in eval mode anyway."""
    return [module for module in method.modules() if isinstance(module, Classifier | Encoder)]


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters that learn at present."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _all_finite(tensors: list[Tensor]) -> bool:
    return bool(torch.stack(torch._foreach_norm(tensors)).isfinite().all())
