"""From a recipe to a graph of stages that is known to run: everything is checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from semisup.config import Reading, read_recipe
from semisup.data import ImageData, LabelBudget, draw_budget, load_data
from semisup.data.sources import at_hand
from semisup.data.store import Watch, unwatched
from semisup.engine import resolve_device, resolve_precision
from semisup.errors import SemisupError, collecting, raise_all
from semisup.methods import Method
from semisup.pipeline.check import check_blocks, check_machine, check_place
from semisup.pipeline.fingerprint import fingerprint
from semisup.pipeline.notes import stage_notes
from semisup.pipeline.sound import sound_part
from semisup.pipeline.trial import available_memory, step_memory
from semisup.settings import Recipe, StageConfig
from semisup.stages.kinds import finished, kind_of
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import describe
from semisup.stages.requirements import names_of

__all__ = [
    "Plan",
    "StagePlan",
    "complete",
    "load_checked",
    "make_plan",
    "needed_stages",
    "plan_stages",
    "recipe_budget",
    "stage_inputs",
]


def make_plan(recipe: Recipe, data: ImageData | None = None, *, trial: bool = True, watch: Watch = unwatched) -> Plan:
    """Check the whole recipe, load its data, draw its labels, and try one step of every stage on the meta device.

    Args:
        recipe: with every reference between its stages checked, as `load_recipe` returns it.
        data: what `load_data(recipe.data)` returned before; None: it is loaded here.
        trial: False skips the trial steps and leaves the stages' memory at 0: for many recipes that differ in what no
            step can tell.
        watch: shows the progress of decoding a folder of images for the first time.

    Raises:
        SemisupError: everything that is wrong, in one message.
    """
    subject = f"recipe '{recipe.name}'"
    raw = recipe.model_dump(by_alias=True)
    problems = [*check_blocks(raw), *check_machine(raw), *(check_place(raw) if data is None else ())]
    if not problems:
        with collecting(problems):
            data = load_data(recipe.data, watch) if data is None else data
            budget = recipe_budget(recipe, data)
    raise_all(problems and [*problems, *_other_mistakes(raw, problems, data)], subject)
    assert data is not None
    device = resolve_device(recipe.device)
    precision = resolve_precision(recipe.precision, device)
    return plan_stages(Plan(recipe, data, budget, device, precision, _statistics(recipe, data), []), trial=trial)


def _statistics(recipe: Recipe, data: ImageData) -> tuple[list[float], list[float]]:
    """Return what images are normalized by: what a finished stage of another run knows, else the data's own.

    Raises:
        SemisupError: two finished stages that know different ones.
    """
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, finished.Config)}
    found = {}
    for name, stage in stages.items():
        try:
            description = describe(Path(str(stage.path)))
        except SemisupError as error:
            raise SemisupError(f"recipe '{recipe.name}': stages.{name}.path: {error}") from error
        found[name] = (description["mean"], description["std"])
    first = next(iter(found.values()), data.statistics)
    raise_all(
        [
            f"stages.{name}.path: its images were normalized in another way than those of '{next(iter(found))}'"
            for name, own in found.items()
            if own != first
        ],
        f"recipe '{recipe.name}'",
    )
    return first


def load_checked(ref: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, own: bool = True) -> Recipe:
    """Read a recipe, from a file or a mapping; where something is wrong with it, look for all else that is wrong.

    Args:
        ref: see `load_recipe`.
        overrides: likewise.
        own: False: other data than those it names will be trained on, so that these are not looked at.

    Raises:
        SemisupError: one message with every mistake: keys, types, ranges, names, options, references, missing data.
    """
    return complete(Reading(ref, overrides) if isinstance(ref, Mapping) else read_recipe(ref, overrides), own=own)


def complete(reading: Reading, *, own: bool = True) -> Recipe:
    """Return the recipe that was read; see `load_checked`."""
    if reading.problems:
        raw = reading.raw
        seen = [*reading.problems, *check_blocks(raw), *check_machine(raw), *(check_place(raw) if own else ())]
        found = list(dict.fromkeys(seen))
        raise_all([*found, *(_other_mistakes(reading.raw, found, None) if own else ())], reading.subject)
    return reading.recipe()


def _other_mistakes(raw: Mapping[str, Any], problems: list[str], data: ImageData | None) -> list[str]:
    """Return what is wrong with the stages and the label budget once these problems are mended.

    Nothing of data that would have to be decoded or downloaded first: an answer is due within seconds.
    """
    known, found = 0, list(problems)
    recipe = sound_part(raw, found)
    if recipe is not None and data is None and at_hand(recipe.data):
        with collecting(found):
            data = load_data(recipe.data)
    # A stage is planned when all is well with those that it reads: once more without what was found wrong with them.
    while recipe is not None and data is not None and len(found) > known:
        known = len(found)
        every_label = draw_budget(data.y_train, "all", 0, data.num_classes)
        plan = Plan(recipe, data, every_label, torch.device("cpu"), "fp32", data.statistics, [])
        with collecting(found):
            plan = dataclasses.replace(plan, budget=recipe_budget(recipe, data))
        _plan_stages(plan, found)
        recipe = sound_part(raw, found)
    return found[len(problems) :]


def recipe_budget(recipe: Recipe, data: ImageData) -> LabelBudget:
    """Draw the labels that a recipe asks for.

    Raises:
        SemisupError: the data do not have them.
    """
    split_seed = recipe.seed if recipe.data.split_seed is None else recipe.data.split_seed
    return draw_budget(
        data.y_train, recipe.data.labels, split_seed, data.num_classes, recipe.data.validation, data.classes
    )


def plan_stages(plan: Plan, *, trial: bool = True) -> Plan:
    """Plan the stages of a recipe whose data, labels and device are known; `trial` as in `make_plan`.

    Raises:
        SemisupError: every stage that cannot run, in one message.
    """
    problems: list[str] = []
    planned = _plan_stages(plan, problems)
    subject = f"recipe '{plan.recipe.name}'"
    if problems:  # before the trial steps, for which torch imports its tracer: 2 s
        others = _other_mistakes(plan.recipe.model_dump(by_alias=True), problems, plan.data)
        raise_all([*problems, *others], subject)
    for name, one in planned.items() if trial else ():
        with collecting(problems, f"stages.{name}."):
            planned[name] = _tried(plan, one)
    raise_all(problems, subject)
    return dataclasses.replace(plan, stages=[dataclasses.replace(one, method=None) for one in planned.values()])


def _plan_stages(plan: Plan, problems: list[str]) -> dict[str, StagePlan]:
    """Plan every stage that can be; `problems` gets what is wrong with the others."""
    planned: dict[str, StagePlan] = {}
    for name, stage in plan.recipe.stages.items():
        if not all(needed in planned for needed in stage_inputs(stage)):
            continue  # the stage that is missing was complained about
        with collecting(problems, f"stages.{name}."):
            one = kind_of(stage.kind).plan(plan, name, stage, planned)
            hashes = [planned[needed].fingerprint for needed in one.inputs]
            notes = () if one.method is None else tuple(_notes(one, one.method))
            planned[name] = dataclasses.replace(one, fingerprint=fingerprint(plan, one, hashes), notes=notes)
    return planned


def _notes(stage: StagePlan, method: Method) -> list[str]:
    config = stage.training
    pretrained = config.init is not None or stage.weights is not None
    return stage_notes(method, config, stage.steps, pretrained=pretrained)


def _tried(plan: Plan, stage: StagePlan) -> StagePlan:
    """Make one step of a stage that trains, and note the memory that it takes.

    Raises:
        SemisupError: the step cannot be made, or does not fit into the device's memory.
    """
    if stage.method is None:
        return stage
    memory = step_memory(stage.method, stage.training, plan.data, plan.precision)
    available = available_memory(plan.device)
    if memory > available:
        raise SemisupError(
            f"batch: a step needs about {memory / 2**30:.1f} GiB and {plan.device} has "
            f"{available / 2**30:.1f}; use smaller batches or a smaller model"
        )
    return dataclasses.replace(stage, memory=memory)


def stage_inputs(stage: StageConfig) -> tuple[str, ...]:
    """Names of the earlier stages that a stage reads."""
    return names_of(kind_of(stage.kind).inputs(stage))


def needed_stages(stages: dict[str, StageConfig], name: str) -> dict[str, StageConfig]:
    """Return a recipe's stage and all that it depends on, in the recipe's order."""
    needed = {name}
    for earlier in reversed(stages):
        if earlier in needed:
            needed.update(stage_inputs(stages[earlier]))
    return {key: stage for key, stage in stages.items() if key in needed}
