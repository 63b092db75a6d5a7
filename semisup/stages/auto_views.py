"""`augment: auto`: labels choose how strong a stage's views are, each predicted by a network that was not given it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from torch import Tensor, nn

from semisup.engine import ranks, seed_for
from semisup.errors import SemisupError
from semisup.evaluate import predict_logits
from semisup.methods import Method, Views
from semisup.records import checked, read_json
from semisup.settings import PoolConfig, TrainConfig
from semisup.stages.artifact import write_json
from semisup.stages.choice import folds_of, without
from semisup.stages.context import StageContext
from semisup.stages.planned import Plan
from semisup.stages.predictor import read_network
from semisup.stages.views import following_background

__all__ = [
    "CHOICE",
    "FOLDS",
    "STEPS",
    "STRENGTHS",
    "Choice",
    "check_auto",
    "choice_note",
    "choose",
    "choose_views",
    "choosing_steps",
    "with_strength",
]

CHOICE = "views.json"
"""What was chosen, in the folder of a stage that is not finished."""
STRENGTHS: dict[str, dict[str, Any]] = {
    "weak": {"policy": "weak"},
    "strong": {"policy": "randaugment"},
    "gentle": {"policy": "weak", "shift": 0.0625, "flip": False},
}
"""What is chosen from, of equals the first. `gentle` never mirrors, the others where `data.flip` allows it."""
FOLDS, STEPS = 3, 100
"""Parts of the labels, and steps of a short training, if the stage has as many."""


class Choice(BaseModel):
    """How strong a stage's views are, and why."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    strength: str
    """A key of `STRENGTHS`."""
    labels: Annotated[int, Field(ge=1)]
    """That were predicted by networks without them."""
    accuracy: dict[str, float]
    """Of each strength, on these labels."""
    loss: dict[str, float]
    """Mean negative log-likelihood of these labels, nats."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """That it took; they are of the stage's."""

    @model_validator(mode="after")
    def _has_every_strength(self) -> Self:
        if not {self.strength} <= self.accuracy.keys() == self.loss.keys() == STRENGTHS.keys():
            raise ValueError(f"strength, accuracy and loss must be of {', '.join(STRENGTHS)}")
        return self

    def __str__(self) -> str:
        each = ", ".join(f"{name} {self.loss[name]:.2f} ({self.accuracy[name]:.0%} right)" for name in self.loss)
        return f"{self.strength} views, by the loss of {self.labels:,} labels that were left out: {each}"


def check_auto(whole: Plan, stage: TrainConfig, method: Method) -> None:
    """Refuse `augment: auto` where there is nothing to choose, or nothing to choose by.

    Raises:
        SemisupError: the method trains no classifier or has no view to choose, or no class has two labels.
    """
    if not stage.chooses_views:
        return
    if method.trains != "classifier" or not with_strength(stage, method.views, "weak"):
        policies = {**method.views.policies("labeled"), **method.views.policies("unlabeled")}
        raise SemisupError(
            f"augment.policy: auto chooses among gentle, weak and strong views for a classifier; method "
            f"'{stage.method['name']}' leaves it none to choose ({', '.join(map(': '.join, policies.items()))}); "
            f"remove it"
        )
    if max(whole.budget.per_class) < 2:
        raise SemisupError("augment.policy: auto chooses by labels that are left out, and no class has two; remove it")


def choice_note(stage: TrainConfig, steps: int) -> str | None:
    """Return what a plan says that `augment: auto` will do; None without it."""
    if not stage.chooses_views:
        return None
    return (
        f"augment: auto first trains {len(STRENGTHS)} x {FOLDS} times on labels alone, {min(STEPS, steps)} steps each, "
        f"and takes {' or '.join(STRENGTHS)} views by the labels left out"
    )


def choosing_steps(stage: TrainConfig, steps: int) -> int:
    """Return how many steps the short trainings of `augment: auto` have together, labels alone; 0 without it.

    Args:
        stage: settings.
        steps: of the stage itself.
    """
    return len(STRENGTHS) * FOLDS * min(STEPS, steps) if stage.chooses_views else 0


def with_strength(stage: TrainConfig, views: Views, strength: str) -> dict[str, Any]:
    """Return the views that a strength decides on, with their settings; those that the recipe names are its own.

    A method's strong views get the strength; its weak ones are never strong where it has both.
    """
    defaults = {**views.policies("labeled"), **views.policies("unlabeled")}
    milder = "weak" if strength == "strong" and "randaugment" in defaults.values() else strength
    wanted = {"randaugment": strength, "weak": milder}
    return {
        view: STRENGTHS[wanted[policy]]
        for view, policy in defaults.items()
        if policy in wanted and view not in stage.augment
    }


def choose_views(
    context: StageContext, views: Views, fitted: Callable[[StageContext], nn.Module]
) -> tuple[StageContext, Choice | None]:
    """Return a stage's context with the views that its labels choose, and the choice; as it is without `auto`.

    Each strength trains the stage's network, from the weights that the stage starts from, on the labels of all parts
    but one, and predicts that part's. Weights of a stage that was trained on labels know those that are left out: then
    training starts from the first ones. All see the same images in the same order. What was chosen is kept in the
    stage's folder: a stage that goes on after a stop does not choose again.

    Args:
        context: of the stage.
        views: that its method asks for.
        fitted: trains a stage of labels alone, and returns its predictor.

    Raises:
        SemisupError: what was kept is damaged. It is never silently ignored: a checkpoint was trained with its views.
    """
    stage = context.config
    assert isinstance(stage, TrainConfig)
    if not stage.chooses_views:
        return context, None
    path = context.folder / CHOICE
    known = _same_everywhere(lambda: _text(_kept(path)) if path.exists() else "")
    found = Choice(**json.loads(known)) if known else choose(context, fitted)
    if not known:
        found = Choice(**json.loads(_same_everywhere(lambda: _text(found))))
    if ranks.rank() == 0:
        write_json(path, found.model_dump())
    augment = stage.augment | with_strength(stage, views, found.strength)
    return replace(context, config=_followed(context, stage.model_copy(update={"augment": augment}), views)), found


def _followed(context: StageContext, stage: TrainConfig, views: Views) -> TrainConfig:
    return stage.model_copy(update={"augment": following_background(stage, views, context.data.background)})


def _kept(path: Path) -> Choice:
    try:
        return checked(TypeAdapter(Choice), read_json(path), f"{path}: no choice of views")
    except SemisupError as error:
        raise SemisupError(f"{error}; delete it, and the stage's checkpoint, to start the stage again") from None


def _text(choice: Choice) -> str:
    return json.dumps(choice.model_dump())


def _same_everywhere(text: Callable[[], str]) -> str:
    """Return rank 0's text on every rank."""
    return text() if ranks.size() == 1 else ranks.same_everywhere(lambda: text().encode()).decode()


def choose(context: StageContext, fitted: Callable[[StageContext], nn.Module]) -> Choice:
    """Train and predict for every strength, see `choose_views`."""
    y_train, parts = context.data.y_train, _parts(context)
    truth = torch.from_numpy(np.concatenate([y_train[part] for part in parts]))
    accuracy, loss, begun = {}, {}, time.perf_counter()
    for strength in STRENGTHS:
        recipe = context.recipe.model_copy(update={"compile": False})
        alone = _followed(context, _on_labels_alone(context, strength), Views(labeled=("weak",)))
        short = replace(context, config=alone, recipe=recipe, steps=min(STEPS, context.steps))
        logits = [_predicted(short, part, fitted) for part in parts]
        predicted = torch.cat(logits)
        accuracy[strength] = float((predicted.argmax(1) == truth).double().mean())
        loss[strength] = float(F.cross_entropy(predicted, truth))
    strength, seconds = min(loss, key=loss.__getitem__), time.perf_counter() - begun
    return Choice(strength=strength, labels=len(truth), accuracy=accuracy, loss=loss, seconds=seconds)


def _parts(context: StageContext) -> list[NDArray[np.int64]]:
    seed = seed_for(context.recipe.seed, context.name, "views")
    return list(folds_of(context.budget, context.data.y_train, FOLDS, seed))


def _predicted(context: StageContext, part: NDArray[np.int64], fitted: Callable[[StageContext], nn.Module]) -> Tensor:
    """Logits (n, C) float64 of some labeled images, on the CPU, by a network that was trained on the other labels."""
    data = context.data
    rest = without(context.budget, part, data.y_train, data.num_classes)
    network = fitted(replace(context, budget=rest))
    return predict_logits(network, context.clean_batches(data.x_train, part)).double().cpu()


def _on_labels_alone(context: StageContext, strength: str) -> TrainConfig:
    """Return a stage's settings for a short training on its labels alone: the network and its optimizer stay."""
    stage = context.config
    assert isinstance(stage, TrainConfig)
    source = None if stage.init is None else stage.init.source
    knows = source is not None and read_network(context.inputs[source].folder).kind == "classifier"
    anew = {"init": None, "freeze": None, "lora": None, "train": "all"}
    return stage.model_copy(
        update=(anew if knows else {})
        | {
            "method": {"name": "supervised"},
            "augment": {"weak": STRENGTHS[strength], "backend": "device"},
            "optimizer": stage.optimizer.model_copy(update={"group_lr": {}}),
            "teacher": [],
            "pseudo_labels": None,
            "pool": PoolConfig(),
            "gradient_accumulation": 1,
            "ema": None,
            "refresh_batchnorm": "auto",
        }
    )
