"""The training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from semisup.engine import ranks
from semisup.engine.checkpoint import from_bytes, to_bytes
from semisup.engine.observers import Observer
from semisup.engine.split import split_networks
from semisup.engine.training import FitSettings, Training
from semisup.errors import SemisupError
from semisup.methods import Batch, Method
from semisup.models import EMA
from semisup.signals import deferred

__all__ = ["BatchSource", "FitResult", "Stopped", "fit"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, after the checkpoint was written."""


class BatchSource(Protocol):
    """Step -> batch, and how many source images a batch holds."""

    @property
    def images_per_step(self) -> int:
        """Source images in a batch."""

    def __call__(self, step: int) -> Batch:
        """Return the batch of one step."""


@dataclass
class FitResult:
    """What a fit leaves, next to the trained method."""

    ema: EMA | None
    """Average of the predictor's weights, if one was asked for."""
    seconds: float
    """Wall-clock of the loop, over all sittings."""
    images_per_second: float
    """Source images, labeled and unlabeled."""
    resumed_from: int | None
    """Step that a checkpoint led back to."""
    log: dict[str, float] = field(default_factory=dict)
    """Terms of the last report."""


def fit(method: Method, batches: BatchSource, settings: FitSettings, observers: Sequence[Observer] = ()) -> FitResult:
    """Train a method in place.

    Args:
        method: on the device already.
        batches: step -> batch.
        settings: length, optimizer, schedule and the rest.
        observers: what looks on, in this order (`semisup.engine.observers`).

    Raises:
        NonFiniteLossError: names the step and the terms; the last checkpoint from before it is kept.
        Stopped: Ctrl-C, after the step was finished. A second Ctrl-C does not wait for the end of the step.
        SemisupError: whatever an observer raises.
    """
    run = Training(method, settings)
    with ranks.agreeing():
        for observer in observers:
            observer.begins(run)
    if ranks.size() > 1:
        _begin_together(run)
    resumed_from = run.step if run.kept is not None else None
    method.train()
    run.start_clock()
    mistake: SemisupError | None = None
    with deferred() as interrupted:
        while not (stopped := ranks.any_rank(interrupted.is_set() or mistake is not None)) and not run.done:
            reports = run.reports
            run.prepare()
            for update in run.updates(batches):
                for observer in observers:
                    run.window.add(run.step, observer.measures(run, update), may_be_nan=True)
            run.finish_step()
            if reports:
                run.report()
            try:
                _look_on(run, observers, reports=reports)
            except SemisupError as error:  # kept until all ranks know that there is one: most have no observers
                mistake = error
        if stopped:
            with ranks.agreeing():
                if mistake is not None:
                    raise mistake
                for observer in observers:
                    observer.stops(run)
            raise Stopped
    seconds = run.seconds
    rate = run.step * settings.accumulate * batches.images_per_step / seconds if seconds > 0 else float("nan")
    return FitResult(run.ema, seconds, rate, resumed_from, run.terms)


def _look_on(run: Training, observers: Sequence[Observer], *, reports: bool) -> None:
    """Let the observers see a finished step, and its report if there was one."""
    if reports:
        for observer in observers:
            observer.reports(run)
    for observer in observers:
        observer.steps(run)


def _begin_together(run: Training) -> None:
    """Give every rank the state of rank 0, which may have read a checkpoint, and split the networks."""
    split_networks(run.method, sync_batchnorm=run.settings.sync_batchnorm)
    state = ranks.same_everywhere(lambda: to_bytes(run.state()))
    if ranks.rank() > 0:
        run.load(from_bytes(state))
