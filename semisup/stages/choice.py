"""Which of several stages to believe: each labeled image is predicted by a run that was not given its label."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.columns import UNEQUAL
from semisup.data import LabelBudget
from semisup.engine import seed_for
from semisup.errors import SemisupError
from semisup.evaluate.metrics import class_means, confusion_matrix
from semisup.stages.context import StageContext
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictions import predictions

__all__ = ["all_below", "check_choice", "cross_fitted", "folds_of", "without"]

FOLDS = "folds"
"""Folder of the runs; what is finished there is not run again after a stop."""


def all_below(earlier: Mapping[str, StagePlan], name: str) -> list[str]:
    """Return the stages that a stage reads, directly or not."""
    return [other for one in earlier[name].inputs for other in (one, *all_below(earlier, one))]


def check_choice(whole: Plan, key: str, candidates: Sequence[StagePlan]) -> None:
    """Refuse a choice that labels which are left out cannot make.

    Args:
        whole: plan, which has labels.
        key: that names the candidates.
        candidates: planned stages.

    Raises:
        SemisupError: no class has two labels, or a candidate comes from another run.
    """
    if max(whole.budget.per_class) < 2:
        raise SemisupError(f"{key}: is chosen from by labels that are left out, and no class has two")
    for candidate in candidates:
        if candidate.config.kind == "finished":
            raise SemisupError(
                f"{key}: '{candidate.name}' comes from another run, which may have learned from the labels that are "
                f"left out here; write its stages into this recipe"
            )


def cross_fitted(
    context: StageContext, candidates: Sequence[str], folds: int, repeats: int = 1
) -> tuple[str, dict[str, float]]:
    """Return the best of earlier stages, and their accuracy on the labeled images, each predicted without its label.

    Of labels whose classes differ by more than 3 times it is the mean over classes, as the headline of results is. Of
    equals the one with the least squared error of its probabilities is taken (benchmarks/choice.py); then the first.

    A stage is run anew with the labels of all parts but one, together with the stages below it that read labels; the
    image itself stays among the unlabeled ones. Test images have no part in it.

    Args:
        context: of the stage that chooses; its inputs are all that the candidates read, directly or not.
        candidates: names of stages that predict classes.
        folds: parts of the labels; as many as there are labels of the second most frequent class, if those are fewer.
        repeats: how often the labels are parted anew, >= 1.

    Raises:
        SemisupError: too few labels for two parts.
    """
    assert context.again is not None
    data, budget = context.data, context.budget
    said: dict[str, list[Tensor]] = {name: [] for name in candidates}
    parts = list(_parts(context, folds, repeats))
    for i, part in enumerate(parts):
        rest = without(budget, part, data.y_train, data.num_classes)
        for name in candidates:
            context.say(f"{context.name}: {name} without part {i + 1} of {len(parts)} of the labels")
            done = context.again(name, rest, context.folder / FOLDS / str(i))
            said[name].append(predictions(done, name, part))
    shutil.rmtree(context.folder / FOLDS)
    return _best(torch.from_numpy(data.y_train[np.concatenate(parts)]), {k: torch.cat(v) for k, v in said.items()})


def _best(asked: Tensor, said: Mapping[str, Tensor]) -> tuple[str, dict[str, float]]:
    """Return whose probabilities (L, num_classes) name most of the classes (L,), and everyone's accuracy."""
    wanted = F.one_hot(asked, next(iter(said.values())).shape[1])
    errors = {name: float((probs - wanted).square().sum(dim=1).mean()) for name, probs in said.items()}
    found = {name: _accuracy(asked, probs.argmax(1), probs.shape[1]) for name, probs in said.items()}
    return min(said, key=lambda name: (-round(found[name], 9), errors[name])), found


def _accuracy(asked: Tensor, guesses: Tensor, num_classes: int) -> float:
    """Return what part of the labels was found, every class counting alike where they differ by more than 3 times."""
    matrix = confusion_matrix(guesses, asked, num_classes).double()
    sizes = matrix.sum(dim=1)
    if sizes.max() > UNEQUAL * sizes[sizes > 0].min():
        return class_means(matrix)[0]
    return float(matrix.diagonal().sum() / matrix.sum())


def _parts(context: StageContext, folds: int, repeats: int) -> Iterator[np.ndarray]:
    for repeat in range(repeats):
        seed = seed_for(context.recipe.seed, context.name, "folds", *([repeat] if repeat else []))
        yield from folds_of(context.budget, context.data.y_train, folds, seed)


def folds_of(budget: LabelBudget, y_train: np.ndarray, folds: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the rows of each part: every class is spread evenly over the parts, and keeps a label outside each.

    A class with one label stays outside all parts, as no run without it could know it.

    Args:
        budget: whose labels are parted.
        y_train: (N,) classes.
        folds: how many parts, >= 2; fewer where no class has as many labels.
        seed: of the order inside a class.

    Raises:
        SemisupError: no class has two labels.
    """
    generator = np.random.default_rng(seed)
    rows = generator.permutation(budget.index)
    parts: list[list[int]] = [[] for _ in range(folds)]
    place = 0
    for label in np.unique(y_train[rows]):
        members = rows[y_train[rows] == label]
        for row in members if len(members) > 1 else ():
            parts[place % folds].append(int(row))
            place += 1
    filled = [np.sort(np.array(part, dtype=np.int64)) for part in parts if part]
    if len(filled) < 2:
        raise SemisupError("the choice is made by labels that are left out, and no class has two")
    yield from filled


def without(budget: LabelBudget, part: np.ndarray, y_train: np.ndarray, num_classes: int) -> LabelBudget:
    """Return the labels of a budget but for some rows."""
    index = np.setdiff1d(budget.index, part)
    return dataclasses.replace(
        budget,
        index=index,
        hash=hashlib.sha256(index.tobytes()).hexdigest(),
        per_class=np.bincount(y_train[index], minlength=num_classes).tolist(),
    )
