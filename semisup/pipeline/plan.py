"""From a recipe to a graph of stages that is known to run: everything is checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from semisup.config import Recipe, StageConfig
from semisup.data import ImageData, LabelBudget, draw_budget, load_data
from semisup.data.store import Watch, unwatched
from semisup.engine import check_compiler, resolve_device, resolve_precision
from semisup.errors import SemisupError, raise_all
from semisup.pipeline.check import check_recipe
from semisup.pipeline.fingerprint import fingerprint
from semisup.pipeline.notes import stage_notes
from semisup.pipeline.trial import available_memory, step_memory
from semisup.stages.kinds import kind_of
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.requirements import names_of

__all__ = ["Plan", "StagePlan", "make_plan", "needed_stages", "plan_stages", "recipe_budget", "stage_inputs"]


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
    problems = check_recipe(recipe)
    with _collecting(problems):
        device = resolve_device(recipe.device)
        precision = resolve_precision(recipe.precision, device)
        if recipe.compile:
            check_compiler(device)
    with _collecting(problems):
        data = load_data(recipe.data, watch) if data is None else data
        budget = recipe_budget(recipe, data)
    raise_all(list(dict.fromkeys(problems)), subject)  # a label budget that is none is one for both
    assert data is not None
    return plan_stages(Plan(recipe, data, budget, device, precision, data.statistics, []), trial=trial)


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
    planned: dict[str, StagePlan] = {}
    for name, stage in plan.recipe.stages.items():
        if not all(needed in planned for needed in stage_inputs(stage)):
            continue  # the stage that is missing was complained about
        with _collecting(problems, f"stages.{name}."):
            one = kind_of(stage.kind).plan(plan, name, stage, planned)
            hashes = [planned[needed].fingerprint for needed in one.inputs]
            notes = () if one.method is None else tuple(stage_notes(one.method, one.training, one.steps))
            planned[name] = dataclasses.replace(one, fingerprint=fingerprint(plan, one, hashes), notes=notes)
    subject = f"recipe '{plan.recipe.name}'"
    raise_all(problems, subject)  # before the trial steps, for which torch imports its tracer: 2 s
    for name, one in planned.items() if trial else ():
        with _collecting(problems, f"stages.{name}."):
            planned[name] = _tried(plan, one)
    raise_all(problems, subject)
    return dataclasses.replace(plan, stages=[dataclasses.replace(one, method=None) for one in planned.values()])


def _tried(plan: Plan, stage: StagePlan) -> StagePlan:
    """Make one step of a stage that trains, and note the memory that it takes.

    Raises:
        SemisupError: the step cannot be made, or does not fit into the device's memory.
    """
    if stage.method is None:
        return stage
    memory, available = (
        step_memory(stage.method, stage.training, plan.data, plan.precision),
        available_memory(plan.device),
    )
    if memory > available:
        raise SemisupError(
            f"batch: a step needs about {memory / 2**30:.1f} GiB and {plan.device} has "
            f"{available / 2**30:.1f}; use smaller batches or a smaller model"
        )
    return dataclasses.replace(stage, memory=memory)


@contextmanager
def _collecting(problems: list[str], prefix: str = "") -> Iterator[None]:
    try:
        yield
    except SemisupError as error:
        problems.append(f"{prefix}{error}")


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
