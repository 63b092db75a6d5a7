"""The jobs that a run consists of: stages of its recipe, and at its end perhaps a baseline.

A job is named by a fingerprint of everything that can change its result. Runs that need the same job share it: one
pretraining serves every budget and every draw.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semisup._version import __version__
from semisup.bench.suites.runs import RunSpec, expand, option_values, spec_recipe
from semisup.bench.suites.suite import Compute, Suite
from semisup.data import ImageData
from semisup.errors import SemisupError
from semisup.pipeline.fingerprint import stage_settings
from semisup.pipeline.plan import Plan, StagePlan, make_plan
from semisup.pipeline.timing import all_steps, own_steps, stage_seconds
from semisup.settings import Recipe

__all__ = [
    "Job",
    "Planned",
    "Timing",
    "baseline_fingerprint",
    "longest_steps",
    "make_jobs",
    "plan_run",
    "step_kind",
    "unique_jobs",
]

Timing = Mapping[str, float]
"""Kind of step (see `step_kind`) -> seconds of one step, measured alone."""


@dataclass(frozen=True)
class Job:
    """One stage or baseline: what a worker needs to run it, besides the finished jobs that it reads."""

    fingerprint: str
    name: str
    recipe: Recipe
    stage: str | None
    """Of the recipe; None for a baseline."""
    inputs: tuple[tuple[str, str], ...]
    """Stage name -> fingerprint of what it reads."""
    baseline: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Expected, from measured step times; 0 where nothing was measured."""
    steps: int = 0
    processes: int = 1
    """That share it, of a train stage."""


@dataclass(frozen=True)
class Planned:
    """A run with its plan as the recipe has it, before its length is scaled."""

    spec: RunSpec
    plan: Plan
    evaluated: str
    """The evaluated stage, or the one whose features a baseline reads; "" for a baseline on pixels."""


def plan_run(suite: Suite, spec: RunSpec, data: ImageData) -> Planned:
    """Plan a run without trial steps.

    Raises:
        SemisupError: whatever is wrong with its recipe.
    """
    recipe, evaluated = spec_recipe(suite, spec)
    plan = make_plan(recipe, data, trial=False)
    # What a worker finds out for itself must be what was planned here, whatever device it has.
    stages = {stage.name: stage.config for stage in plan.stages}  # of which `augment.backend` is resolved
    recipe = recipe.model_copy(update={"precision": plan.precision, "stages": stages})
    return Planned(spec, dataclasses.replace(plan, recipe=recipe), evaluated)


def step_kind(plan: Plan, stage: StagePlan) -> str:
    """Return what a step's time depends on: method, network, batch, views, precision; not labels or seeds."""
    settings = stage_settings(stage.config)
    if not settings.get("augment"):  # the device, chosen or unsaid
        settings.pop("augment", None)
    for key in ("steps", "epochs", "init", "teacher", "pseudo_labels", "schedule", "stop_on_collapse"):
        settings.pop(key, None)
    optimizer = settings.pop("optimizer", {})
    optimizer = {key: value for key, value in optimizer.items() if key not in ("lr", "group_lr", "weight_decay")}
    if optimizer:  # settings hold what differs from the defaults: none left is the same as none given
        settings["optimizer"] = optimizer
    content = {
        "stage": settings,
        "network": None if stage.network is None else stage.network.to_json(),
        "inputs": [s.network.to_json() for s in plan.stages if s.name in stage.inputs and s.network is not None],
        "image": [plan.data.channels, plan.data.size],
        "precision": plan.precision,
        "threads": plan.recipe.threads,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def longest_steps(suite: Suite, data: ImageData) -> dict[str, int]:
    """Return the steps of all stages of the longest entry at each budget, as the recipes have them.

    Args:
        suite: the suite.
        data: its data.

    Raises:
        SemisupError: whatever is wrong with a recipe.
    """
    longest: dict[str, int] = {}
    for spec in expand(suite):
        first = (spec.draw, spec.init) == (suite.draws[0], suite.inits[0]) and spec.compute == suite.computes[0]
        if first and not suite.entries[spec.entry].baseline:
            steps = sum(stage.steps for stage in plan_run(suite, spec, data).plan.stages)
            longest[str(spec.labels)] = max(steps, longest.get(str(spec.labels), 0))
    return longest


def make_jobs(suite: Suite, planned: Planned, timing: Timing, longest: Mapping[str, int] | None = None) -> list[Job]:
    """Return the jobs of a run in the order they depend on each other; the last one is evaluated.

    Args:
        suite: the suite.
        planned: one of its runs.
        timing: seconds of one step; needed for every kind of step where the run's length is given in seconds.
        longest: of `longest_steps`; needed where all runs of a budget are to have equal steps.

    Raises:
        SemisupError: a length in seconds, and a step that could not be timed.
    """
    spec, plan = planned.spec, planned.plan
    compute = spec.compute
    if compute.unit == "equal":
        compute = Compute((longest or {}).get(str(spec.labels), 0), "steps")
    if compute.amount and any(stage.steps for stage in plan.stages):
        plan = make_plan(_scaled(plan, compute, timing, spec.entry), plan.data, trial=False)
    fingerprints = {stage.name: stage.fingerprint for stage in plan.stages}
    jobs = [
        Job(
            stage.fingerprint,
            f"{spec.entry}: {stage.name}",
            plan.recipe,
            stage.name,
            tuple((name, fingerprints[name]) for name in stage.inputs),
            seconds=stage_seconds(plan, stage, lambda one: timing.get(step_kind(plan, one), 0.0)),
            steps=stage.steps,
            processes=suite.gpus_per_run if stage.config.kind == "train" else 1,
        )
        for stage in plan.stages
    ]
    entry = suite.entries[spec.entry]
    if entry.baseline:
        inputs = ((planned.evaluated, fingerprints[planned.evaluated]),) if planned.evaluated else ()
        baseline = {**entry.baseline, **option_values(spec.options)}
        jobs.append(Job(baseline_fingerprint(plan, baseline, inputs), spec.entry, plan.recipe, None, inputs, baseline))
    return jobs


def _scaled(plan: Plan, compute: Compute, timing: Timing, entry: str) -> Recipe:
    """Return the recipe with every train stage's steps scaled by one factor, so that they take the compute together.

    The last train stage gets what rounding leaves over. A warm-up that is given in steps is scaled with its stage. Of
    seconds, those of the short trainings of `augment: auto` are a part; steps are a stage's own.
    """
    trained = [stage for stage in plan.stages if stage.steps]
    in_steps = compute.unit == "steps"
    costs = [_step_cost(plan, stage, compute, timing, entry) for stage in trained]

    def spent(steps: Iterable[float]) -> float:  # by the first stages, as many as there are numbers
        return sum(
            (n if in_steps else all_steps(stage, n)) * cost
            for stage, n, cost in zip(trained, steps, costs, strict=False)
        )

    plain = compute.amount / sum(stage.steps * cost for stage, cost in zip(trained, costs, strict=True))
    factor = _factor(lambda factor: spent(stage.steps * factor for stage in trained), compute.amount, plain)
    counts = [max(1, round(stage.steps * factor)) for stage in trained]
    left = (compute.amount - spent(counts[:-1])) / costs[-1]
    counts[-1] = max(1, round(left if in_steps else own_steps(trained[-1], left)))
    steps = {stage.name: n for stage, n in zip(trained, counts, strict=True)}
    stages = {}
    for stage in plan.stages:
        config = stage.config
        if stage.steps:
            schedule = stage.training.schedule
            if schedule.warmup >= 1:  # counted in steps; below 1 it would be taken for a fraction of the stage
                warmup = max(1.0, schedule.warmup * steps[stage.name] / stage.steps)
                schedule = schedule.model_copy(update={"warmup": warmup})
            config = config.model_copy(update={"epochs": None, "steps": steps[stage.name], "schedule": schedule})
        stages[stage.name] = config
    return plan.recipe.model_copy(update={"stages": stages})


def _factor(spent: Callable[[float], float], amount: float, most: float) -> float:
    """Return where a growing function is `amount`: at most at `most`."""
    least = 0.0
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (middle, most) if spent(middle) < amount else (least, middle)
    return most


def _step_cost(plan: Plan, stage: StagePlan, compute: Compute, timing: Timing, entry: str) -> float:
    if compute.unit == "steps":
        return 1.0
    kind = step_kind(plan, stage)
    if kind not in timing:
        raise SemisupError(f"entries.{entry}: compute {compute.text}: stage '{stage.name}' could not be timed")
    return timing[kind]


def baseline_fingerprint(plan: Plan, baseline: Mapping[str, Any], inputs: Sequence[tuple[str, str]]) -> str:
    """Hash of all that can change a baseline's result."""
    import sklearn

    content = {
        "version": __version__,
        "sklearn": sklearn.__version__,
        "baseline": dict(baseline),
        "seed": plan.recipe.seed,
        "data": plan.data.hash,
        "split": plan.budget.hash,
        "inputs": list(inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def unique_jobs(runs: Sequence[Sequence[Job]]) -> Iterator[Job]:
    """Every job once, in the order of first need."""
    seen: set[str] = set()
    for job in itertools.chain.from_iterable(runs):
        if job.fingerprint not in seen:
            seen.add(job.fingerprint)
            yield job
