"""From a suite to its runs: every entry at every budget, draw, initial seed and length, and the jobs they consist of.

A job is one stage of one recipe, or one baseline, named by a fingerprint of everything that can change its result. Runs
that need the same job share it: one pretraining serves every budget and every draw.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semisup._version import __version__
from semisup.bench.suite import Compute, EntryConfig, Suite
from semisup.config import Recipe, find_recipe, parse_recipe
from semisup.config.load import overlay
from semisup.config.read import read_mapping
from semisup.data import ImageData, draw_budget
from semisup.errors import SemisupError, nearest, raise_all
from semisup.pipeline.plan import Plan, StagePlan, make_plan, stage_inputs

__all__ = ["Cell", "Job", "Timing", "base_plans", "cell_jobs", "expand", "step_kind", "trial_options", "unique_jobs"]

Timing = Mapping[str, float]
"""Kind of step (see `step_kind`) -> seconds of one step, measured alone."""


@dataclass(frozen=True)
class Cell:
    """One run of the suite, before anything is planned."""

    entry: str
    labels: Any
    draw: int
    init: int
    compute: Compute
    options: tuple[str, ...] = ()
    """Searched hyper-parameters, key=value."""
    validation: float = 0.0
    """Part of the labels held out, in a trial of the search."""

    @property
    def name(self) -> str:
        """For people and MLflow, e.g. `fixmatch 40 draw 0`."""
        words = [self.entry, str(self.labels), f"draw {self.draw}", f"init {self.init}" if self.init else ""]
        words += [self.compute.text, " ".join(self.options), "trial" if self.validation else ""]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Job:
    """One stage or baseline: what a worker needs to run it, beside the finished jobs that it reads."""

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


def expand(suite: Suite) -> list[Cell]:
    """All runs, draws outermost: when a suite is stopped, every method has been run on the draws so far.

    With all labels there is nothing to draw: such a budget has the first draw only.
    """
    cells = []
    for draw, init, compute in itertools.product(suite.draws, suite.inits, suite.computes):
        for name, entry in suite.entries.items():
            for labels in suite.labels if entry.labels is None else entry.labels:
                if str(labels) == "all" and draw != suite.draws[0]:
                    continue
                # A baseline has no seed of its own, no weights and no steps.
                if entry.baseline and (init != suite.inits[0] or compute != suite.computes[0]):
                    continue
                cells.append(Cell(name, labels, draw, init, compute))
    return cells


def trial_options(suite: Suite, entry: str) -> list[tuple[str, ...]]:
    """The search's combinations for an entry, `search.trials` of them: drawn at random, without repetition, seeded."""
    grid = suite.entries[entry].search
    combinations = [
        tuple(f"{key}={json.dumps(value)}" for key, value in zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    assert suite.search is not None
    return random.Random(f"{suite.seed} {entry}").sample(combinations, suite.search.trials)


def cell_recipe(suite: Suite, cell: Cell) -> tuple[Recipe, str]:
    """The recipe of a run, cut down to the stages it needs, and the stage that is judged ("" for pixels' baselines).

    Raises:
        SemisupError: whatever is wrong with the entry's recipe or stage.
    """
    entry = suite.entries[cell.entry]
    if entry.baseline:
        features = entry.features or {}
        if not features:
            return _blank(suite, cell), ""
        source = EntryConfig(
            recipe=features["recipe"], stage=features.get("stage"), overrides=list(features.get("overrides", []))
        )
        return _from_recipe(suite, cell, source, ())
    if entry.recipe is not None:
        return _from_recipe(suite, cell, entry, cell.options)
    subject = f"entries.{cell.entry}"
    problems: list[str] = []
    stages = {
        name: overlay(_copy(suite.defaults), stage, "", problems) if stage.get("kind", "train") == "train" else stage
        for name, stage in (entry.stages or {"train": entry.train}).items()
    }
    raise_all(problems, subject)
    options = [f"stages.train.{option}" for option in cell.options] if entry.train else cell.options
    recipe = parse_recipe(_setting(suite, cell, {"name": suite.name, "stages": stages}), options, subject)
    return _judged(recipe, entry.stage, subject)


def _from_recipe(suite: Suite, cell: Cell, entry: EntryConfig, options: Sequence[str]) -> tuple[Recipe, str]:
    mapping = read_mapping(find_recipe(str(entry.recipe)))
    # The suite's settings are laid over the file before the overrides, so that `${seed}` and the like still lead there.
    subject = f"entries.{cell.entry}: {entry.recipe}"
    recipe = parse_recipe(_setting(suite, cell, mapping), [*entry.overrides, *options], subject)
    return _judged(recipe, entry.stage, subject)


def _judged(recipe: Recipe, judged: str | None, subject: str) -> tuple[Recipe, str]:
    """The recipe without what its judged stage does not need, and that stage: by default the last."""
    stage = judged if judged is not None else list(recipe.stages)[-1]
    if stage not in recipe.stages:
        raise SemisupError(f"{subject}: stage: there is no stage '{stage}'{nearest(stage, recipe.stages)}")
    needed = {stage}
    for name in reversed(recipe.stages):
        if name in needed:
            needed.update(stage_inputs(recipe.stages[name]))
    return dataclasses.replace(recipe, stages={n: s for n, s in recipe.stages.items() if n in needed}), stage


def _setting(suite: Suite, cell: Cell, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's mapping with the suite's data, network, seeds and the run's labels."""
    data = {key: value for key, value in dataclasses.asdict(suite.data).items() if value is not None}
    data |= {"labels": cell.labels, "split_seed": cell.draw, "validation": cell.validation}
    changed = {
        **mapping,
        "data": data,
        "seed": suite.seed,
        "init_seed": cell.init,
        "precision": suite.precision,
        "threads": suite.threads,
        "oracle_every": suite.oracle_every,
    }
    return changed if suite.model is None else changed | {"model": _copy(suite.model)}


def _blank(suite: Suite, cell: Cell) -> Recipe:
    data = dataclasses.replace(suite.data, labels=cell.labels, split_seed=cell.draw, validation=cell.validation)
    return Recipe(
        name=suite.name,
        seed=suite.seed,
        init_seed=cell.init,
        precision=suite.precision,
        threads=suite.threads,
        data=data,
    )


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def base_plans(suite: Suite, data: ImageData) -> dict[str, Plan]:
    """The plan of every entry's first run, with its trial steps: every mistake of a suite shows here.

    Raises:
        SemisupError: all problems of all entries in one message.
    """
    cells = expand(suite)
    # A budget that cannot be drawn is said once, not by every entry.
    budgets = dict.fromkeys(cell.labels for cell in cells)
    problems = [problem for labels in budgets for problem in _budget_problems(suite, labels, data)]
    raise_all(problems, f"suite '{suite.name}'")
    plans = {}
    for name in suite.entries:
        first = next(cell for cell in cells if cell.entry == name)
        try:
            recipe, _ = cell_recipe(suite, first)
            plans[name] = make_plan(recipe, data)
            if suite.search is not None:  # the searched keys and the types of their values
                for options in trial_options(suite, name):
                    cell_recipe(suite, dataclasses.replace(first, options=options))
        except SemisupError as error:
            problems.append(f"entries.{name}: {str(error).removeprefix(f'entries.{name}: ')}")
    raise_all(problems, f"suite '{suite.name}'")
    return plans


def _budget_problems(suite: Suite, labels: Any, data: ImageData) -> list[str]:
    validation = 0.0 if suite.search is None else suite.search.validation
    try:
        draw_budget(data.y_train, labels, suite.draws[0], data.num_classes, validation)
    except SemisupError as error:
        return [f"labels: {str(error).removeprefix('data.labels: ')}"]
    return []


def step_kind(plan: Plan, stage: StagePlan) -> str:
    """What a step's time depends on: method, network, batch, views, precision; not labels, seeds or length."""
    settings = dataclasses.asdict(stage.config)
    for key in ("steps", "epochs", "init", "teacher", "pseudo_labels", "schedule"):
        del settings[key]
    content = {
        "stage": settings,
        "network": None if stage.network is None else stage.network.to_json(),
        "inputs": [s.network.to_json() for s in plan.stages if s.name in stage.inputs and s.network is not None],
        "image": [plan.data.channels, plan.data.size],
        "precision": plan.precision,
        "threads": plan.recipe.threads,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cell_jobs(suite: Suite, cell: Cell, data: ImageData, timing: Timing) -> list[Job]:
    """The jobs of a run in the order they depend on each other; the last one is judged.

    Args:
        suite: the suite.
        cell: one of its runs.
        data: the suite's data.
        timing: seconds of one step; needed for every kind of step where the run's length is given in seconds.

    Raises:
        SemisupError: as for `cell_recipe`.
    """
    recipe, judged = cell_recipe(suite, cell)
    plan = make_plan(recipe, data, trial=False)
    if cell.compute.unit and plan.stages:
        plan = make_plan(_scaled(plan, cell.compute, timing), data, trial=False)
    # What a worker finds out for itself must be what was planned here, whatever device it has.
    recipe = dataclasses.replace(plan.recipe, precision=plan.precision)
    fingerprints = {stage.name: stage.fingerprint for stage in plan.stages}
    jobs = [
        Job(
            stage.fingerprint,
            f"{cell.entry}: {stage.name}",
            recipe,
            stage.name,
            tuple((name, fingerprints[name]) for name in stage.inputs),
            seconds=stage.steps * timing.get(step_kind(plan, stage), 0.0),
            steps=stage.steps,
        )
        for stage in plan.stages
    ]
    entry = suite.entries[cell.entry]
    if entry.baseline:
        inputs = ((judged, fingerprints[judged]),) if judged else ()
        baseline = {**entry.baseline, **_options(cell.options)}
        jobs.append(Job(_baseline_fingerprint(plan, baseline, inputs), cell.entry, recipe, None, inputs, baseline))
    return jobs


def _options(options: Sequence[str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, _, value in (option.partition("=") for option in options)}


def _scaled(plan: Plan, compute: Compute, timing: Timing) -> Recipe:
    """The recipe with every stage's steps scaled by one factor, so that the run has `compute` in all."""
    if compute.unit == "steps":
        total = float(sum(stage.steps for stage in plan.stages))
    else:
        total = sum(stage.steps * timing[step_kind(plan, stage)] for stage in plan.stages if stage.steps)
    stages = {
        stage.name: dataclasses.replace(
            stage.config, epochs=None, steps=max(1, round(stage.steps * compute.amount / total))
        )
        if stage.steps
        else stage.config
        for stage in plan.stages
    }
    return dataclasses.replace(plan.recipe, stages=stages)


def _baseline_fingerprint(plan: Plan, baseline: Mapping[str, Any], inputs: Sequence[tuple[str, str]]) -> str:
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
