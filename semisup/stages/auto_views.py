"""`augment: auto`: labels choose how strong a stage's views are, each predicted by a network that was not given it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from torch import nn

from semisup.engine import ranks, seed_for
from semisup.errors import SemisupError
from semisup.evaluate import predict_logits
from semisup.methods import Method, Views
from semisup.records import checked, read_json
from semisup.settings import PoolConfig, StageConfig, TrainConfig
from semisup.stages.artifact import write_json
from semisup.stages.choice import folds_of, without
from semisup.stages.context import StageContext
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictor import read_network
from semisup.stages.views import following_background

__all__ = [
    "CHOICE",
    "FOLDS",
    "STEPS",
    "STRENGTHS",
    "Choice",
    "Scores",
    "check_auto",
    "choice_note",
    "choose",
    "choose_views",
    "choosing_steps",
    "chosen_before",
    "follows",
    "steps_within",
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


class Scores(BaseModel):
    """What a short training predicted of the labels of one part, which it was not given."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    labels: Annotated[int, Field(ge=1)]
    """Of the part."""
    right: Annotated[int, Field(ge=0)]
    """How many of them it predicted."""
    loss: Annotated[float, Field(ge=0)]
    """Their negative log-likelihood, nats, all together."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """That it took; they are of the stage's."""


class Choice(BaseModel):
    """How strong a stage's views are, and why; or what of it is known before a stop."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    scores: dict[str, list[Scores]]
    """Of each key of `STRENGTHS`, the parts in order, as far as they are trained."""

    @model_validator(mode="after")
    def _has_every_strength(self) -> Self:
        if self.scores.keys() != STRENGTHS.keys():
            raise ValueError(f"scores must be of {', '.join(STRENGTHS)}")
        return self

    @property
    def strength(self) -> str:
        """The chosen key of `STRENGTHS`, of equals the first."""
        return min(self.loss, key=self.loss.__getitem__)

    @property
    def labels(self) -> int:
        """How many were predicted by networks without them."""
        return sum(part.labels for part in self.scores[self.strength])

    @property
    def accuracy(self) -> dict[str, float]:
        """Of each strength, on these labels."""
        return {name: sum(p.right for p in parts) / sum(p.labels for p in parts) for name, parts in self.scores.items()}

    @property
    def loss(self) -> dict[str, float]:
        """Mean negative log-likelihood of these labels, nats."""
        return {name: sum(p.loss for p in parts) / sum(p.labels for p in parts) for name, parts in self.scores.items()}

    @property
    def seconds(self) -> float:
        """That all short trainings took, over all sittings."""
        return sum(part.seconds for parts in self.scores.values() for part in parts)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {self.loss[name]:.2f} ({self.accuracy[name]:.0%} right)" for name in self.loss)
        return f"{self.strength} views, by the loss of {self.labels:,} labels that were left out: {each}"


_REMOVED = " (on the command line: augment.policy=null)"


def check_auto(whole: Plan, stage: TrainConfig, method: Method) -> None:
    """Refuse `augment: auto` where there is nothing to choose, or nothing to choose by.

    Raises:
        SemisupError: the method trains no classifier or has no view to choose, or no class has two labels.
    """
    if not stage.chooses_views:
        return
    if method.trains != "classifier" or not with_strength(stage, method.views, "weak"):
        views = ", ".join(f"{name}: {policy}" for name, policy in method.views.defaults.items())
        raise SemisupError(
            f"augment.policy: auto chooses among gentle, weak and strong views for a classifier; method "
            f"'{stage.method['name']}' leaves it none to choose ({views}); remove it{_REMOVED}"
        )
    if max(whole.budget.per_class) < 2:
        raise SemisupError(
            f"augment.policy: auto chooses by labels that are left out, and no class has two; remove it{_REMOVED}"
        )


def follows(stage: TrainConfig, stages: Mapping[str, StageConfig]) -> str | None:
    """Return the stage whose views a stage takes over in place of a choice: the one it starts from, if that chooses."""
    source = None if stage.init is None or stage.init.source is None else stage.init.source
    other = None if source is None else stages[source]
    return source if stage.chooses_views and isinstance(other, TrainConfig) and other.chooses_views else None


def chosen_before(context: StageContext) -> str | None:
    """Return the strength that the stage `follows` has chosen; None: this one chooses itself, or nothing is to choose.

    A stage that an older version has finished does not say what it chose.
    """
    stage = context.config
    assert isinstance(stage, TrainConfig)
    source = follows(stage, context.recipe.stages)
    strength = None if source is None else context.inputs[source].record.get("strength")
    return strength if strength in STRENGTHS else None


def choice_note(stage: TrainConfig, steps: int, followed: str | None) -> str | None:
    """Return what a plan says that `augment: auto` will do; None without it."""
    if not stage.chooses_views:
        return None
    if followed is not None:
        return f"augment: auto takes the views that {followed} has chosen"
    return (
        f"augment: auto first trains {len(STRENGTHS)} x {FOLDS} times on labels alone, {min(STEPS, steps)} steps each, "
        f"and takes {' or '.join(STRENGTHS)} views by the labels left out"
    )


def choosing_steps(stage: StagePlan, steps: float) -> float:
    """Return how many steps the short trainings of `augment: auto` have together, labels alone; 0 without them.

    Args:
        stage: planned.
        steps: of the stage itself.
    """
    return len(STRENGTHS) * FOLDS * min(STEPS, steps) if stage.short_trainings else 0


def steps_within(stage: StagePlan, steps: float, share: float) -> float:
    """Return the steps of a stage that last as long as `steps` of its own, its short trainings among them.

    Args:
        stage: planned.
        steps: in whose time the stage is to be done.
        share: of the time of a step that one of the short trainings takes.
    """
    short = len(STRENGTHS) * FOLDS * share if stage.short_trainings else 0.0
    return max(steps / (1 + short), steps - STEPS * short)  # as the stage has less or more than STEPS steps


def with_strength(stage: TrainConfig, views: Views, strength: str) -> dict[str, Any]:
    """Return the views that a strength decides on, with their settings; those that the recipe names are its own.

    A method's strong views get the strength; its weak ones are never strong where it has both.
    """
    defaults = views.defaults
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
    training starts from the first ones. All see the same images in the same order. What each short training scored is
    kept in the stage's folder: a stage that goes on after a stop makes only those that are missing. A stage that starts
    from one that has chosen takes its views: the same labels would choose again.

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
    strength, found = chosen_before(context), None
    if strength is None:
        found = choose(context, fitted)
        strength = found.strength
    augment = stage.augment | with_strength(stage, views, strength)
    return replace(context, config=_followed(context, stage.model_copy(update={"augment": augment}), views)), found


def _followed(context: StageContext, stage: TrainConfig, views: Views) -> TrainConfig:
    return stage.model_copy(update={"augment": following_background(stage, views, context.data.background)})


def _kept(path: Path, sizes: list[int]) -> Choice:
    """Return what is known of a choice.

    Args:
        path: where it is kept.
        sizes: labels of each part.

    Raises:
        SemisupError: the file is damaged, or of other parts.
    """
    if not path.exists():
        return Choice(scores={strength: [] for strength in STRENGTHS})
    try:
        found = checked(TypeAdapter(Choice), read_json(path), f"{path}: no choice of views")
        if any([part.labels for part in parts] != sizes[: len(parts)] for parts in found.scores.values()):
            raise SemisupError(f"{path}: a choice by other labels")
    except SemisupError as error:
        raise SemisupError(f"{error}; delete it, and the stage's checkpoint, to start the stage again") from None
    return found


def _same_everywhere(choice: Callable[[], Choice]) -> Choice:
    """Return rank 0's choice on every rank."""
    if ranks.size() == 1:
        return choice()
    return Choice.model_validate_json(ranks.same_everywhere(lambda: choice().model_dump_json().encode()))


def choose(context: StageContext, fitted: Callable[[StageContext], nn.Module]) -> Choice:
    """Train and predict for every strength and part that is not scored yet, see `choose_views`."""
    path, parts = context.folder / CHOICE, _parts(context)
    choice = _same_everywhere(lambda: _kept(path, [len(part) for part in parts]))
    recipe = context.recipe.model_copy(update={"compile": False})
    for strength in STRENGTHS:
        alone = _followed(context, _on_labels_alone(context, strength), Views(labeled=("weak",)))
        short = replace(context, config=alone, recipe=recipe, steps=min(STEPS, context.steps))
        for part in parts[len(choice.scores[strength]) :]:
            scored = [*choice.scores[strength], _scores(short, part, fitted)]
            choice = Choice(scores=choice.scores | {strength: scored})
            if ranks.rank() == 0:
                write_json(path, choice.model_dump())
    return _same_everywhere(lambda: choice)  # what another rank has rounded otherwise decides nothing


def _parts(context: StageContext) -> list[NDArray[np.int64]]:
    seed = seed_for(context.recipe.seed, context.name, "views")
    return list(folds_of(context.budget, context.data.y_train, FOLDS, seed))


def _scores(context: StageContext, part: NDArray[np.int64], fitted: Callable[[StageContext], nn.Module]) -> Scores:
    """Score the labels of some images by a network that was trained on the others."""
    data, begun = context.data, time.perf_counter()
    rest = without(context.budget, part, data.y_train, data.num_classes)
    network = fitted(replace(context, budget=rest))
    logits = predict_logits(network, context.clean_batches(data.x_train, part)).cpu().double()
    truth = torch.from_numpy(data.y_train[part])
    right, loss = int((logits.argmax(1) == truth).sum()), float(F.cross_entropy(logits, truth, reduction="sum"))
    return Scores(labels=len(part), right=right, loss=loss, seconds=time.perf_counter() - begun)


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
