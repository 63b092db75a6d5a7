"""From a suite to its runs: every entry at every budget, draw, initial seed and length, each with its recipe."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semisup.bench.suites.baselines import check_baseline
from semisup.bench.suites.suite import Compute, EntryConfig, FeaturesConfig, Suite
from semisup.config import find_recipe, parse_recipe
from semisup.config.load import overlay
from semisup.data import ImageData, draw_budget
from semisup.errors import SemisupError, nearest, raise_all
from semisup.pipeline.check import check_blocks, check_machine
from semisup.pipeline.plan import Plan, StagePlan, make_plan, needed_stages
from semisup.pipeline.several import not_shared
from semisup.settings import Recipe
from semisup.settings.labels import parse_labels
from semisup.settings.read import read_mapping

__all__ = ["RunSpec", "check_entries", "expand", "option_values", "spec_recipe", "trial_options"]


@dataclass(frozen=True)
class RunSpec:
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


def expand(suite: Suite) -> list[RunSpec]:
    """All runs, draws outermost: when a suite is stopped, every method has been run on the draws so far.

    With all labels there is nothing to draw: such a budget has the first draw only, of each part of the labeled images
    that is left out to test.
    """
    first = {draw % suite.data.folds: draw for draw in reversed(suite.draws)}
    specs = []
    for draw, init, compute in itertools.product(suite.draws, suite.inits, suite.computes):
        for name, entry in suite.entries.items():
            for labels in suite.labels if entry.labels is None else entry.labels:
                if parse_labels(labels).everything and draw != first[draw % suite.data.folds]:
                    continue
                # A baseline has no seed of its own, no weights and no steps.
                if entry.baseline and (init != suite.inits[0] or compute != suite.computes[0]):
                    continue
                specs.append(RunSpec(name, labels, draw, init, compute))
    return specs


def trial_options(suite: Suite, entry: str) -> list[tuple[str, ...]]:
    """Return the search's combinations for an entry, `search.trials` of them: drawn without repetition, seeded."""
    grid = suite.entries[entry].search
    combinations = [
        tuple(f"{key}={json.dumps(value)}" for key, value in zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    assert suite.search is not None
    return random.Random(f"{suite.seed} {entry}").sample(combinations, suite.search.trials)


def spec_recipe(suite: Suite, spec: RunSpec) -> tuple[Recipe, str]:
    """Return the recipe of a run, cut down to the stages it needs, and the stage that is evaluated ("" for pixels).

    Raises:
        SemisupError: whatever is wrong with the entry's recipe or stage.
    """
    entry = suite.entries[spec.entry]
    if entry.baseline:
        if entry.features is None:
            return _blank(suite, spec), ""
        return _from_recipe(suite, spec, entry.features, ())
    if entry.recipe is not None:
        return _from_recipe(suite, spec, entry, spec.options)
    subject = f"entries.{spec.entry}"
    problems: list[str] = []
    stages = {
        name: _over_defaults(suite.defaults, stage, problems) if stage.get("kind", "train") == "train" else stage
        for name, stage in (entry.stages or {"train": entry.train}).items()
    }
    raise_all(problems, subject)
    options = [f"stages.train.{option}" for option in spec.options] if entry.train else spec.options
    recipe = parse_recipe(_setting(suite, spec, {"name": suite.name, "stages": stages}), options, subject)
    return _evaluated(recipe, entry.stage, subject)


def _over_defaults(defaults: Mapping[str, Any], stage: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return a stage laid over the suite's defaults; its own length, in steps or epochs, replaces theirs."""
    length = {"steps", "epochs"} & stage.keys()
    below = {k: v for k, v in _copy(defaults).items() if not (length and k in ("steps", "epochs"))}
    return overlay(below, dict(stage), "", problems)


def _from_recipe(
    suite: Suite, spec: RunSpec, entry: EntryConfig | FeaturesConfig, options: Sequence[str]
) -> tuple[Recipe, str]:
    mapping = read_mapping(find_recipe(str(entry.recipe)))
    # The suite's settings are laid over the file before the overrides, so that `${seed}` and the like still lead there.
    subject = f"entries.{spec.entry}: {entry.recipe}"
    recipe = parse_recipe(_setting(suite, spec, mapping), [*entry.overrides, *options], subject)
    return _evaluated(recipe, entry.stage, subject)


def _evaluated(recipe: Recipe, evaluated: str | None, subject: str) -> tuple[Recipe, str]:
    """Return the recipe without what its evaluated stage does not need, and that stage: by default the last."""
    stage = evaluated if evaluated is not None else list(recipe.stages)[-1]
    if stage not in recipe.stages:
        raise SemisupError(f"{subject}: stage: there is no stage '{stage}'{nearest(stage, recipe.stages)}")
    return recipe.model_copy(update={"stages": needed_stages(recipe.stages, stage)}), stage


def _setting(suite: Suite, spec: RunSpec, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's mapping with the suite's data, network, seeds and the run's labels."""
    data = {key: value for key, value in suite.data.model_dump().items() if value is not None}
    data |= _drawn(suite, spec)
    changed = {
        **mapping,
        "data": data,
        "seed": suite.seed,
        "init_seed": spec.init,
        "precision": suite.precision,
        "threads": suite.threads,
        "compile": False,  # most runs of a suite are over before compiling has paid
        "oracle_every": suite.oracle_every,
    }
    return changed if suite.model is None else changed | {"model": _copy(suite.model)}


def _blank(suite: Suite, spec: RunSpec) -> Recipe:
    data = suite.data.model_copy(update=_drawn(suite, spec))
    return Recipe(
        name=suite.name,
        seed=suite.seed,
        init_seed=spec.init,
        precision=suite.precision,
        threads=suite.threads,
        data=data,
    )


def _drawn(suite: Suite, spec: RunSpec) -> dict[str, Any]:
    fold = spec.draw % suite.data.folds
    return {"labels": spec.labels, "split_seed": spec.draw, "validation": spec.validation, "fold": fold}


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def option_values(options: Sequence[str]) -> dict[str, Any]:
    """Return the searched `key=value` texts as a mapping."""
    return {key: json.loads(value) for key, _, value in (option.partition("=") for option in options)}


def check_entries(suite: Suite, data: ImageData, found: Iterable[str] = ()) -> None:
    """Plan the first run of every entry with its trial steps, and every trial of a search: all mistakes show here.

    Args:
        suite: read.
        data: that it names.
        found: sentences on what is wrong with it where it is to run.

    Raises:
        SemisupError: all problems of all entries in one message.
    """
    specs = expand(suite)
    problems = list(found)
    # What is wrong with the suite's own keys is said once, not by every entry.
    shared = check_blocks({} if suite.model is None else {"model": suite.model})
    shared += check_machine({"precision": suite.precision})
    budgets = dict.fromkeys(spec.labels for spec in specs)
    shared += [problem for labels in budgets for problem in _budget_problems(suite, labels, data)]
    raise_all([*problems, *shared] if shared else [], f"suite '{suite.name}'")
    for name in suite.entries:
        first = next(spec for spec in specs if spec.entry == name)
        try:
            recipe, evaluated = spec_recipe(suite, first)
            plan = make_plan(recipe, data)
            unshared = not_shared(recipe, suite.gpus_per_run)
            if suite.gpus_per_run > 1 and not recipe.sync_batchnorm:
                unshared.append("sync_batchnorm: false makes another network on each number of processes; remove it")
            raise_all(unshared, f"{suite.gpus_per_run} processes by gpus_per_run")
            if suite.search is not None:
                _check_search(suite, first, plan, evaluated, data)
        except SemisupError as error:
            problems.append(f"entries.{name}: {str(error).removeprefix(f'entries.{name}: ')}")
    raise_all(problems, f"suite '{suite.name}'")


def _classifies(stage: StagePlan) -> bool:
    """Whether a stage predicts classes learned from the budget's labels, so that its other labels can evaluate it."""
    if stage.network is not None:
        return stage.network.kind == "classifier"
    return stage.config.kind in ("probe", "knn") and stage.reads_labels


def _budget_problems(suite: Suite, labels: Any, data: ImageData) -> list[str]:
    validation = 0.0 if suite.search is None else suite.search.validation
    try:
        draw_budget(data.y_train, labels, suite.draws[0], data.num_classes, validation)
    except SemisupError as error:
        return [f"labels: {str(error).removeprefix('data.labels: ')}"]
    return []


def _check_search(suite: Suite, spec: RunSpec, plan: Plan, evaluated: str, data: ImageData) -> None:
    """Check the searched keys and their values, and that what is evaluated has a validation accuracy."""
    entry = suite.entries[spec.entry]
    stage = next((stage for stage in plan.stages if stage.name == evaluated), None)
    if not entry.baseline and (stage is None or not _classifies(stage)):
        raise SemisupError(f"search: stage '{evaluated}' classifies nothing, so nothing says which trial is best")
    for options in trial_options(suite, spec.entry):
        if entry.baseline:
            raise_all(check_baseline({**entry.baseline, **option_values(options)}, "search"), f"entries.{spec.entry}")
        else:
            make_plan(spec_recipe(suite, dataclasses.replace(spec, options=options))[0], data, trial=False)
