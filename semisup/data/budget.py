"""Which training images keep their label: drawn once per (labels, budget, seed), nested, and hashed.

Every class has one fixed random order of its labeled images, and one fixed random order of the classes breaks ties. A
budget takes the first images of each class's order; a larger budget takes more of the same. So, for one seed,

- of two class-balanced budgets (`40`, `4/class`), and of two percentages, the smaller is part of the larger;
- a class-balanced budget is part of a percentage whenever that percentage has as many images of every class. With
  classes of one size that is every larger percentage: 40 < 250 < 1% < 10% of Fashion-MNIST.

Validation images, if any, are charged to the budget: they are the last of each class's share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.errors import SemisupError
from semisup.settings.labels import Labels, parse_labels

__all__ = ["LabelBudget", "Labels", "class_ratio", "draw_budget", "parse_labels"]


@dataclass(frozen=True)
class LabelBudget:
    """The training images whose label may be used.

    Attributes:
        index: positions in `y_train`, sorted, int64.
        hash: hex SHA-256 of `index`, `validation` and the length of `y_train`.
        per_class: how many of each class, by class.
        validation: positions of the images whose label only validates, sorted, int64; none of them is in `index`.
            Training may still use them as unlabeled images.
    """

    index: NDArray[np.int64]
    hash: str
    per_class: list[int]
    validation: NDArray[np.int64]


def draw_budget(
    y_train: NDArray[np.int64],
    labels: Any,
    seed: int,
    num_classes: int,
    validation: float = 0.0,
    classes: Sequence[str] = (),
) -> LabelBudget:
    """Draw the images that keep their label.

    Args:
        y_train: (n,) classes 0 .. num_classes - 1; images with -1 have no label and are never drawn.
        labels: what `parse_labels` reads. A number of images is split evenly over the classes, and what is left
            over goes to the first classes of the seeded order. A percentage is rounded to whole images (half up) and
            split in proportion to the classes: each next image goes to the class with the largest claim n_k / (j + 1/2)
            after j images (Sainte-Laguë; unlike largest remainders, no class ever loses an image when the budget
            grows), and every class has one first.
        seed: of the draw, 0 to 2**32 - 1; not the training's.
        num_classes: number of classes.
        validation: part of every class's share that is held out, 0 to 0.5: rounded to whole images (half up), at
            least one. The training part of a smaller budget stays part of a larger one's.
        classes: their names, for messages; none: their numbers.

    Raises:
        SemisupError: malformed, more than there is, or fewer than one image per class (with `validation`: than two).
    """
    names = [f"'{name}'" for name in classes] or [str(k) for k in range(num_classes)]
    budget = parse_labels(labels)
    available = np.bincount(y_train[y_train >= 0], minlength=num_classes)
    total = int(available.sum())
    # RandomState, because numpy promises that its streams never change; a split must outlive numpy versions.
    orders = [np.random.RandomState([seed, 1, k]).permutation(np.flatnonzero(y_train == k)) for k in range(num_classes)]
    if budget.kind == "all":
        return _budget(np.flatnonzero(y_train >= 0), y_train, orders, validation, names)
    wanted = _wanted(budget, total, num_classes)
    if wanted > total:
        raise SemisupError(f"data.labels: {budget.text} needs {wanted} labeled images, but there are only {total}")
    if wanted < num_classes:
        raise SemisupError(
            f"data.labels: {budget.text} is {wanted} labeled images, fewer than one for each of {num_classes} classes"
        )
    empty = np.flatnonzero(available == 0)
    if empty.size:
        raise SemisupError(
            f"data.labels: {num_classes} classes, but no labeled image of class {', '.join(names[k] for k in empty)}"
        )

    class_rank = np.argsort(np.random.RandomState([seed, 0]).permutation(num_classes))
    claims, ranks = [], []
    for k, of_class in enumerate(orders):
        j = np.arange(of_class.size, dtype=np.float64)
        if budget.kind == "fraction":
            claims.append(np.where(j == 0, 0.0, (j + 0.5) / of_class.size))
        else:
            claims.append(j)
        ranks.append(np.full(of_class.size, class_rank[k]))
    order = np.lexsort((np.concatenate(ranks), np.concatenate(claims)))[:wanted]
    drawn = np.concatenate(orders)[order]
    per_class = np.bincount(y_train[drawn], minlength=num_classes)
    if budget.kind != "fraction" and per_class.max() - per_class.min() > 1:
        raise SemisupError(_unbalanced(budget, wanted, available, names))
    return _budget(drawn, y_train, orders, validation, names)


def class_ratio(budget: LabelBudget, y_test: NDArray[np.int64]) -> float:
    """Return how many times the largest class is as large as the smallest, of the budget's labels or of the test's.

    The larger of the two ratios; classes without images do not count.

    Args:
        budget: the labels to train on.
        y_test: classes of the test images.
    """
    ratios = [1.0]
    for counts in (np.array(budget.per_class), np.bincount(y_test[y_test >= 0])):
        if (there := counts[counts > 0]).size:
            ratios.append(float(there.max() / there.min()))
    return max(ratios)


def _wanted(budget: Labels, total: int, num_classes: int) -> int:
    """Return the budget in images."""
    if budget.kind == "fraction":
        return int(budget.amount * total + Fraction(1, 2))
    return int(budget.amount) * (num_classes if budget.kind == "per_class" else 1)


def _unbalanced(budget: Labels, wanted: int, available: NDArray[np.int64], names: Sequence[str]) -> str:
    scarce = int(available.argmin())
    per_class = -(-wanted // len(available))
    return (
        f"data.labels: {budget.text} takes {per_class} images of a class, but class {names[scarce]} has only "
        f"{available[scarce]} labeled; take at most {available[scarce]}/class, or a percentage, which follows the "
        f"classes' sizes"
    )


def _budget(
    drawn: NDArray[np.int64],
    y_train: NDArray[np.int64],
    orders: list[NDArray[np.int64]],
    validation: float,
    names: Sequence[str],
) -> LabelBudget:
    """Split the drawn images into those to train on and those to validate with."""
    index, held = np.sort(drawn).astype(np.int64), np.empty(0, np.int64)
    if validation:
        shares = np.bincount(y_train[index], minlength=len(orders))
        if shares.min() < 2:
            raise SemisupError(
                f"data.validation: takes at least one label of every class and leaves one, but class "
                f"{names[int(shares.argmin())]} has {int(shares.min())} in this budget; ask for more labels"
            )
        counts = np.maximum(1, np.floor(validation * shares + 0.5)).astype(int)
        held = np.sort(np.concatenate([o[n - v : n] for o, n, v in zip(orders, shares, counts, strict=True)]))
        index = np.setdiff1d(index, held)
    digest = hashlib.sha256(f"{len(y_train)}:".encode() + index.astype("<i8").tobytes())
    if held.size:
        digest.update(b"validation:" + held.astype("<i8").tobytes())
    return LabelBudget(index, digest.hexdigest(), np.bincount(y_train[index], minlength=len(orders)).tolist(), held)
