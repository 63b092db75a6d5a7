"""What training sees: a figure of every view of some images, and the label budget."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.augment import to_float
from semisup.augment.policies.backend import HostFirst
from semisup.data import take
from semisup.data.store import Watch, unwatched
from semisup.engine import generator
from semisup.errors import SemisupError, nearest
from semisup.evaluate.plots import views_figure
from semisup.pipeline.plan import Plan, StagePlan, make_plan
from semisup.settings import Recipe
from semisup.stages.views import stage_policies

__all__ = ["show_data"]

PARTS: tuple[Literal["labeled", "unlabeled"], ...] = ("labeled", "unlabeled")


def show_data(
    recipe: Recipe, out: Path, *, images: int = 8, stage: str | None = None, watch: Watch = unwatched
) -> list[str]:
    """Write a PNG with a row for every image and a column for every view that the recipe's stages make of it.

    Half of the images are labeled ones of the budget, class by class, the others are any of the rest; which ones, and
    what augmentation does to them, follows from the recipe's seed. Views are drawn before normalization, as they are
    in [0, 1]. A view of labeled images is left empty next to the others; an unlabeled one is made of all images, as in
    training.

    Args:
        recipe: checked, as `load_recipe` returns it.
        out: file to write, in an existing folder.
        images: rows, at least 1.
        stage: the only stage to show; None: every one that trains.
        watch: shows the progress of decoding a folder of images for the first time.

    Returns:
        Lines of a table: the budget, class by class; which views are chosen later; and what a person should know about
        the data.

    Raises:
        SemisupError: the recipe cannot run, there is no such stage, or the file cannot be written.
    """
    plan = make_plan(recipe, trial=False, watch=watch)
    stages = {planned.name: planned for planned in plan.stages if planned.views is not None}
    if stage is not None and stage not in stages:
        raise SemisupError(f"--stage: no stage '{stage}' that trains{nearest(stage, stages)}")
    rows, labeled = _choose(plan, images)
    originals = torch.from_numpy(take(plan.data.x_train, rows))
    columns = [("original", originals.numpy() / 255.0)]
    shown = list(stages.values()) if stage is None else [stages[stage]]
    for planned in shown:
        columns += _views(plan, planned, originals, labeled)
    classes, y = plan.data.classes, plan.data.y_train
    names = [classes[y[row]] if known else "unlabeled" for row, known in zip(rows, labeled, strict=True)]
    counts = list(zip(classes, plan.budget.per_class, strict=True))
    try:
        views_figure(columns, names, counts, f"{recipe.name}: {_headline(plan)}", out)
    except OSError as error:
        raise SemisupError(f"--out {out}: cannot be written ({error.strerror})") from error
    unsure = [
        f"{one.name}: augment: auto chooses in training; drawn is what its method has without it"
        for one in shown
        if one.choice
    ]
    return [*_table(plan), *unsure, *(f"warning: {note}" for note in plan.data.notes)]


def _choose(plan: Plan, images: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of the training images to show, and whether each is one of the budget's labeled ones; those come first."""
    budget, n = plan.budget, len(plan.data.x_train)
    order = torch.randperm(n, generator=generator(plan.recipe.seed, "show")).numpy()
    given = order[np.isin(order, budget.index)]
    others = order[~np.isin(order, np.concatenate([budget.index, budget.validation]))]
    # The first of every class, then the second of every class, ...
    y = plan.data.y_train[given]
    turn = np.array([np.count_nonzero(y[:i] == k) for i, k in enumerate(y[: 50 * images])], np.int64)
    given = given[: len(turn)][np.argsort(turn, kind="stable")]
    some = given[: max(images - len(others), (images + 1) // 2)]
    rows = np.concatenate([some, others[: images - len(some)]])
    return rows, np.isin(rows, budget.index)


def _views(
    plan: Plan, stage: StagePlan, originals: torch.Tensor, labeled: NDArray[np.bool_]
) -> list[tuple[str, NDArray[np.float64]]]:
    """Title and images (n, H, W, C) of every view of a stage; NaN where training makes no such view of an image."""
    assert stage.views is not None
    columns = []
    for part in PARTS:
        defaults = stage.views.policies(part)
        policies = stage_policies(
            stage.training.augment,
            stage.views,
            part,
            flip=plan.data.flip,
            learned=None,
            backend=stage.training.backend,
        )
        for view, policy in policies.items():
            draws = generator(plan.recipe.seed, stage.name, part, view, 0)
            begun = originals
            if isinstance(policy, HostFirst):
                begun, policy = policy.host(originals, draws), policy.then
            pixels = policy(to_float(begun), draws).permute(0, 2, 3, 1).double().numpy()
            if part == "labeled":
                pixels = np.where(labeled[:, None, None, None], pixels, np.nan)
            settings = stage.training.view_settings.get(view, {"policy": defaults[view]})
            steps = [step["name"] for step in settings.get("albumentations", ())]
            name = " ".join([*steps, *([settings["policy"]] if "policy" in settings else [])])
            if "fill" in settings:
                name += f"\nfill {settings['fill']}"
            columns.append((f"{stage.name}\n{part}\n{view}\n{name}", pixels))
    return columns


def _headline(plan: Plan) -> str:
    per_class = plan.budget.per_class
    spread = f"{min(per_class)}" if min(per_class) == max(per_class) else f"{min(per_class)} to {max(per_class)}"
    return f"{len(plan.budget.index):,} of {len(plan.data.x_train):,} training images labeled, {spread} per class"


def _table(plan: Plan) -> list[str]:
    data, budget = plan.data, plan.budget
    there = np.bincount(data.y_train[data.y_train >= 0], minlength=data.num_classes)
    held = np.bincount(data.validation(budget.validation)[2], minlength=data.num_classes)
    width = max(len(name) for name in (*data.classes, "all"))
    lines = [_headline(plan), f"{'class':<{width}} {'labels used':>11} {'validation':>10} {'labels there':>12}"]
    columns = [budget.per_class, held.tolist(), there.tolist()]
    for name, *numbers in zip((*data.classes, "all"), *([*column, sum(column)] for column in columns), strict=True):
        lines.append(f"{name:<{width}} {numbers[0]:11,} {numbers[1]:10,} {numbers[2]:12,}")
    return lines
