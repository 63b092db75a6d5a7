"""Which of several stages to believe: each labeled image is predicted by a run that was not given its label."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.columns import UNEQUAL
from semisup.data import LabelBudget
from semisup.engine import seed_for
from semisup.errors import SemisupError
from semisup.stages.context import StageContext
from semisup.stages.planned import Plan, StagePlan
from semisup.stages.predictions import predictions

__all__ = ["Choice", "all_below", "best_of", "check_choice", "cross_fitted", "folds_of", "without"]

FOLDS = "folds"
"""Folder of the runs; what is finished there is not run again after a stop."""


class Choice(NamedTuple):
    """Which of several stages was taken, and what each said of labels that it was not given."""

    taken: str
    accuracy: dict[str, float]
    error: dict[str, float]
    """Mean squared error of the probabilities (Brier score, 0 to 2)."""

    def metrics(self) -> dict[str, float]:
        """Return what a stage's record has of it."""
        found = {f"choice/{name}": share for name, share in self.accuracy.items()}
        return found | {f"choice_error/{name}": error for name, error in self.error.items()}

    def told(self) -> str:
        """Return the numbers for a person."""
        shares = self.accuracy.items()
        return ", ".join(f"{name} {share:.1%} (squared error {self.error[name]:.2f})" for name, share in shares)


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


def cross_fitted(context: StageContext, candidates: Sequence[str], folds: int, repeats: int = 1) -> Choice:
    """Return the best of earlier stages, by predictions for the labeled images, each made without its label.

    The best is right most often, among those whose probabilities have a squared error (Brier score) within a standard
    error of the least: with a handful of labels one or two hits more are luck, and who is surely wrong shows it there
    (benchmarks/choice.py). Of equals the one with the least squared error is taken, then the first. Classes count alike
    where they differ by more than 3 times, as in the headline of results.

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
    rows = np.concatenate(parts)
    order = rows.argsort(kind="stable").reshape(-1, repeats)  # each label is asked for once in every parting
    asked = torch.from_numpy(data.y_train[rows[order[:, 0]]])
    return best_of(asked, {name: torch.cat(probs)[torch.from_numpy(order)] for name, probs in said.items()})


def best_of(asked: Tensor, said: Mapping[str, Tensor]) -> Choice:
    """Return whose probabilities to believe.

    Args:
        asked: (L,) classes.
        said: name -> probabilities (L, R, num_classes), those of R partings of the labels.
    """
    shares = _shares(asked)
    wanted = F.one_hot(asked, next(iter(said.values())).shape[2])[:, None]
    hits, errors = {}, {}
    for name, probs in said.items():
        hits[name] = float(shares @ (probs.argmax(2) == asked[:, None]).double().mean(1))
        errors[name] = (probs - wanted).double().square().sum(2).mean(1)
    error = {name: float(shares @ each) for name, each in errors.items()}
    least = errors[min(error, key=lambda name: error[name])]
    believed = [name for name, each in errors.items() if not _above(each - least, shares)]
    return Choice(min(believed, key=lambda name: (-round(hits[name], 9), error[name])), hits, error)


def _shares(asked: Tensor) -> Tensor:
    """Return what each label (L,) counts, 1 in all: alike, or by classes where they differ by more than 3 times."""
    sizes = asked.bincount().double()
    unequal = sizes.max() > UNEQUAL * sizes[sizes > 0].min()
    counts = 1 / sizes[asked] if unequal else torch.ones(len(asked), dtype=torch.float64)
    return counts / counts.sum()


def _above(differences: Tensor, shares: Tensor) -> bool:
    """Whether the mean of paired differences (L,), each with its share, is more than its standard error above 0."""
    mean = shares @ differences
    count = len(differences)
    error = ((shares * (differences - mean)).square().sum() * count / (count - 1)).sqrt()
    return bool(mean > error)


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
