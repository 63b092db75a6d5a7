"""What a run tells the person who started it: the plan, a progress bar, the result table."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from semisup.columns import COLUMNS, UNEQUAL, measured
from semisup.data.budget import class_ratio
from semisup.engine.optim import warmup_steps
from semisup.pipeline.plan import Plan, StagePlan
from semisup.pipeline.result import RunResult, StageResult, collapse_note
from semisup.settings.schema import TrainConfig
from semisup.text import duration, harmless, number, percent

__all__ = ["Reporter", "StageProgress", "Terminal"]

LOG = logging.getLogger("semisup")
"""Gets all lines, printed or not, for programs that use the package."""
PLAIN_SECONDS = 5.0
"""Least time between progress lines where there is no terminal."""


class StageProgress:
    """Gets the logged terms of a training stage and shows them."""

    def __init__(self, console: Console, stage: StagePlan, progress: Progress | None) -> None:
        self.console = console
        self.stage = stage
        self.progress = progress
        self.task = progress.add_task(stage.name, total=stage.steps, terms="") if progress is not None else None
        self.first: tuple[float, int] | None = None
        self.printed = -math.inf

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show that `step` steps are done."""
        now = time.perf_counter()
        if self.first is None:
            self.first = (now, step)
        since, done = self.first
        rate = (step - done) / (now - since) if step > done else float("nan")
        shown = {name: v for name, v in values.items() if not name.startswith(("loss/", "collapse/")) and name != "lr"}
        shown |= {name: values[name] for name in ("collapse/std", "collapse/rank") if name in values}
        terms = " ".join(
            f"{name.removeprefix('pseudo_labels_of_batch/').removeprefix('collapse/')} {value:.3g}"
            for name, value in shown.items()
        )
        if math.isfinite(rate):
            terms += f" | {rate * self.stage.images_per_step:,.0f} images/s"
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step, terms=terms)
        elif now - self.printed >= PLAIN_SECONDS or step == self.stage.steps:
            self.printed = now
            left = f" | {(self.stage.steps - step) / rate:.0f} s left" if math.isfinite(rate) else ""
            line = f"{self.stage.name} {step}/{self.stage.steps} {terms}{left}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Terminal:
    """Where a command prints: lines to standard output, warnings to standard error.

    Args:
        quiet: prints nothing but warnings, for library use.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, emoji=False)  # a folder may be called :x:
        if not self.console.is_terminal:
            self.console.width = 150  # a log file has no edge to wrap at
        self.errors = Console(stderr=True, emoji=False)

    def warn(self, message: str) -> None:
        """One line to standard error."""
        LOG.warning("%s", message)
        self.errors.print(f"[yellow]warning:[/] {escape(harmless(message))}", highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        """One line to standard output; square brackets are only brackets."""
        LOG.info("%s", message)
        self.console.print(harmless(message), highlight=False, markup=False, soft_wrap=True)


class Reporter(Terminal):
    """Prints a run."""

    def show_plan(self, plan: Plan, reused: set[str]) -> None:
        """Say data, labels, device, and a row for each stage."""
        data, budget, recipe = plan.data, plan.budget, plan.recipe
        least, most = min(budget.per_class), max(budget.per_class)
        spread = f"{least}" if least == most else f"{least}-{most}"
        self.say(
            f"{recipe.name}: seed {recipe.seed}, {plan.device} {plan.precision}"
            f"{' compiled' if recipe.compile else ''}{' deterministic' if recipe.deterministic else ''}; {data.name}: "
            f"{len(data.x_train):,} training images of {data.size}x{data.size}x{data.channels}, {len(budget.index):,} "
            f"labeled ({spread} per class of {data.num_classes}), {len(data.x_test):,} test images; "
            f"{'mirrored or not' if data.flip else 'never mirrored (data.flip=true allows it)'}"
        )
        if (ratio := class_ratio(budget, data.y_test)) > UNEQUAL:
            advice = "" if any(map(_evens_out, plan.stages)) else "; loss.logit_adjustment=1 trains for it"
            self.say(
                f"classes differ by {ratio:.3g} times: read balanced accuracy (test/balanced_accuracy), the mean over "
                f"classes{advice}"
            )
        for stage in plan.stages:
            if stage.loaded is not None and stage.training.init is not None:
                self.say(f"{stage.name}: {stage.training.init.weights}: {stage.loaded}")
            if stage.weights is not None:
                self.say(f"{stage.name}: weights {stage.weights}")
            if stage.network is not None and stage.network.spec.input is not None:
                self.say(f"{stage.name}: the network scales its images to {stage.network.spec.input}")
            if stage.tuning is not None:
                self.say(f"{stage.name}: {stage.tuning}")
            if stage.choice is not None:
                self.say(f"{stage.name}: {stage.choice}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        columns = [("stage", "left"), ("method", "left"), ("from", "left"), ("network", "left"), ("views", "left")]
        columns += [(c, "right") for c in ("parameters", "steps", "images/step", "peak lr", "warm-up", "memory")]
        for title, justify in columns:
            table.add_column(title, justify="left" if justify == "left" else "right")
        table.add_column("")
        for stage in plan.stages:
            table.add_row(
                stage.name,
                *(_training_cells(stage) if stage.config.kind == "train" else _other_cells(stage)),
                f"{stage.memory / 2**20:,.0f} MiB",
                "done before" if stage.name in reused else "",
            )
        self.console.print(table)

    @contextmanager
    def progress(self, stage: StagePlan, *, resumes: bool = False) -> Iterator[StageProgress]:
        """Show a progress bar on a terminal; elsewhere a line at once and then one every few seconds."""
        if not self.console.is_terminal or self.console.quiet or not stage.steps:
            if stage.steps:
                self.say(f"{stage.name}: goes on" if resumes else f"{stage.name} 0/{stage.steps}")
            yield StageProgress(self.console, stage, None)
            return
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield StageProgress(self.console, stage, progress)

    def show_expected(self, seconds: dict[str, float]) -> None:
        """How long training will take, stage by stage."""
        if seconds:
            each = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
            together = f"; together {duration(sum(seconds.values()))}" if len(seconds) > 1 else ""
            self.say(f"expected time of training: {each}{together}; evaluation is not in it")

    def stage_done(self, result: StageResult) -> None:
        """One line for a finished stage."""
        numbers = {name: value for name, value in result.headline().items() if value is not None}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.say(f"{result.name} {result.status}, {result.seconds:.1f} s{': ' if shown else ''}{shown}{_asked(result)}")
        if result.chosen is not None:
            self.say(f"{result.name}: {result.chosen}")
        if told := _calibrated(result):
            self.say(told)
        if note := collapse_note(result.name, result.metrics):
            self.warn(note)

    def show_result(self, result: RunResult) -> None:
        """Say the result table, a line for every metric that some stage has and a column for every stage."""
        found = [measured(stage.metrics) for stage in result.stages]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("stage")
        for stage in result.stages:
            table.add_column(escape(stage.name), justify="right")
        table.add_row("method", *(stage.method for stage in result.stages))
        table.add_row("status", *(stage.status for stage in result.stages))
        table.add_row("parameters", *(number(stage.parameters or None, 0) for stage in result.stages))
        table.add_row("time", *(duration(stage.seconds) for stage in result.stages))
        for column in COLUMNS:
            values = [of_stage[column.name] for of_stage in found]
            if any(value is not None for value in values):
                table.add_row(column.title, *("" if value is None else column.write(value) for value in values))
        self.console.print(table)
        for stage in result.stages:
            if note := collapse_note(stage.name, stage.metrics):
                self.say(note)


def _calibrated(result: StageResult) -> str:
    """Return what temperature scaling has done to a classifier; nothing where no validation labels calibrate it."""
    found = result.metrics
    if "calibration/temperature" not in found:
        return ""
    tested = "test_calibrated/ece" in found
    names = ("test/ece", "test_calibrated/ece") if tested else ("calibration/ece_before", "calibration/ece_after")
    before, after = (percent(found[name]) for name in names)
    where = "the test images" if tested else "these labels"
    labels = f"{found['calibration/labels']:,} validation labels"
    told = f"{result.name} calibrated by {labels}: temperature {found['calibration/temperature']:.2f}"
    return f"{told}, ECE of {where} {before} -> {after}%"


def _asked(result: StageResult) -> str:
    """Return what the figures of a pretraining stage were measured on."""
    images = result.metrics.get("probe/validation")
    if images is None:
        return ""
    where = f"{images:,} validation images" if images else "the test images, there are no validation labels"
    return f" (of {where}; by the true labels of the training images, hidden ones too)"


def _evens_out(stage: StagePlan) -> bool:
    """Return whether a stage is told to make up for unequal classes."""
    if not isinstance(stage.config, TrainConfig):
        return False
    loss = stage.config.loss
    return bool(loss.logit_adjustment or loss.class_weights or stage.config.batch.balanced)


def _describe(stage: StagePlan) -> str:
    if stage.network is None:
        return ""
    spec = stage.network.spec
    options = " ".join(f"{key}={value}" for key, value in spec.options.items())
    neck = f" +{len(spec.neck)} head layer{'s' if len(spec.neck) > 1 else ''}" if spec.neck else ""
    return f"{spec.name} {options}{neck}".strip()


def _training_cells(stage: StagePlan) -> list[str]:
    config = stage.training
    lrs = {config.optimizer.lr, *config.optimizer.group_lr.values()}
    return [
        str(config.method["name"]),
        ", ".join(stage.inputs),
        escape(_describe(stage)),
        config.backend,
        f"{stage.parameters:,}",
        f"{stage.steps:,}",
        f"{stage.images_per_step:,}",
        "/".join(f"{lr:g}" for lr in sorted(lrs)),
        f"{warmup_steps(config.schedule, stage.steps)}",
    ]


def _other_cells(stage: StagePlan) -> list[str]:
    return [stage.config.kind, ", ".join(stage.inputs), *[""] * 7]
