"""A tiny data set and a way to run stages on it without the pipeline's store: what training sees is in our hands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semisup.config import parse_recipe
from semisup.data import ImageData, LabelBudget, draw_budget
from semisup.pipeline.execute import again
from semisup.pipeline.plan import Plan, plan_stages
from semisup.stages import Artifact, StageContext
from semisup.stages.kinds import kind_of

CPU = torch.device("cpu")


def small_data(n: int = 60, n_test: int = 24, classes: int = 3, seed: int = 0, channels: int = 1) -> ImageData:
    """8x8 images, gray or in color, whose brightness tells the class, with noise."""
    rng = np.random.default_rng(seed)
    y, y_test = np.arange(n) % classes, np.arange(n_test) % classes

    def draw(y: np.ndarray) -> np.ndarray:
        return (rng.integers(0, 90, (len(y), 8, 8, channels)) + 60 * y[:, None, None, None]).astype(np.uint8)

    return ImageData(
        name="small",
        x_train=draw(y),
        y_train=y.astype(np.int64),
        x_test=draw(y_test),
        y_test=y_test.astype(np.int64),
        classes=[f"class {k}" for k in range(classes)],
        flip=False,
    )


def small_plan(
    stages: dict[str, Any], data: ImageData, budget: LabelBudget | None = None, *, trial: bool = True, **recipe: Any
) -> tuple[Plan, LabelBudget]:
    """Plan a recipe with these stages, 4-wide networks and 2 labels per class; `trial`: see `make_plan`."""
    mapping = {
        "name": "small",
        "device": "cpu",
        "log_every": 1,
        "data": {"labels": "2/class"},
        "model": {"name": "cnn", "width": 4},
        "stages": stages,
        **recipe,
    }
    loaded = parse_recipe(mapping)
    if budget is None:
        budget = draw_budget(data.y_train, loaded.data.labels, loaded.seed, data.num_classes)
    plan = Plan(loaded, data, budget, CPU, "fp32", data.statistics, [])
    return plan_stages(plan, trial=trial), budget


def run_stages(
    stages: dict[str, Any],
    data: ImageData,
    folder: Path,
    budget: LabelBudget | None = None,
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    evaluation_data: ImageData | None = None,
    **recipe: Any,
) -> dict[str, Artifact]:
    """Run the stages in order below `folder`; `evaluation_data` stands in for `data` once everything is planned."""
    plan, budget = small_plan(stages, data, budget, trial=False, **recipe)
    finished: dict[str, Artifact] = {}
    for stage in plan.stages:
        home = folder / stage.name
        home.mkdir(parents=True, exist_ok=True)
        context = StageContext(
            name=stage.name,
            config=stage.config,
            recipe=plan.recipe,
            data=evaluation_data or data,
            budget=budget,
            inputs={name: finished[name] for name in stage.inputs},
            steps=stage.steps,
            folder=home,
            network=stage.network,
            device=CPU,
            precision="fp32",
            statistics=plan.statistics,
            on_log=on_log,
        )
        context = dataclasses.replace(context, again=partial(again, plan, context))
        finished[stage.name], _ = kind_of(stage.config.kind).run(context)
    return finished


def with_test(data: ImageData, x_test: np.ndarray, y_test: np.ndarray) -> ImageData:
    """The same training data with another test set."""
    return dataclasses.replace(data, x_test=x_test, y_test=y_test)


def train_stage(method: str, **options: Any) -> dict[str, Any]:
    """A stage of 3 steps with small batches; `options` of the method, and `stage` for other keys of the stage."""
    stage = options.pop("stage", {})
    return {
        "method": {"name": method, **options},
        "batch": {"labeled": 6, "unlabeled": 12},
        "steps": 3,
        "ema": 0.5,
        **stage,
    }
