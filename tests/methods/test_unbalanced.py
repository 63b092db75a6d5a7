"""Where classes are not equally frequent, alignment to equal ones hurts; to the labels' or to estimated ones it helps.

Two overlapping Gaussians of 85 and 15%: the best boundary gives 94.4%, and every guess that is pushed across it costs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.methods import METHODS, Batch, Labeled, Progress, Unlabeled
from semisup.methods.parts.prior import Prior
from semisup.models import Classifier
from tests.methods import methods_reference as ref

STEPS, IMAGES, LABELS = 150, 2000, 40
OPTIONS: dict[str, dict[str, Any]] = {
    "fixmatch": {"threshold": 0.0, "align": True, "align_momentum": 0.9},
    "softmatch": {"momentum": 0.9},
    "comatch": {"threshold": 0.0, "memory": 512, "embedding": 4},
    "simmatch": {"threshold": 0.0, "embedding": 4},
    "remixmatch": {"strong_views": 1},
}


def points(n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 1, 2, 2) images whose first pixel tells the class, and classes."""
    y = (torch.rand(n, generator=draw) > 0.85).long()
    images = torch.randn(n, 1, 2, 2, generator=draw)
    images[:, 0, 0, 0] += 1.4 * (2 * y - 1)
    return images, y


def accuracy(name: str, prior: Prior | None, *, balanced: bool = False) -> float:
    """Of a softmax regression; the labels are drawn at random, or as many of each class. None: the method's default."""
    draw = torch.Generator().manual_seed(0)
    (x, y), (x_test, y_test) = points(IMAGES, draw), points(4000, draw)
    of_class = [(y == c).nonzero()[: LABELS // 2, 0] for c in range(2)]
    known = torch.cat(of_class) if balanced else torch.arange(LABELS)
    torch.manual_seed(0)
    model = Classifier(ref.Flat(), nn.Sequential(), 2)
    options = OPTIONS[name] | ({} if prior is None else {"prior": prior})
    method: Any = METHODS[name](model, *([IMAGES, LABELS] if name == "simmatch" else []), **options)
    optimizer = torch.optim.SGD(method.groups()["main"], lr=0.3)
    for step in range(STEPS):
        i = known[torch.randperm(LABELS, generator=draw)[:20]]
        u = torch.randint(IMAGES, (100,), generator=draw)
        noisy = [x[rows] + 0.3 * torch.randn(len(rows), 1, 2, 2, generator=draw) for rows in (i, u, u, u, u)]
        labeled = Labeled({"weak": noisy[0], "strong": noisy[0]}, y[i], i)
        unlabeled = Unlabeled(dict(zip(("weak", "strong", "second", "strong_1"), noisy[1:], strict=True)), u)
        for update in method.step(Batch(labeled, unlabeled), Progress(step, STEPS)):
            optimizer.zero_grad()
            update.loss.backward()
            optimizer.step()
    return float((model(x_test).argmax(1) == y_test).float().mean())


@pytest.mark.parametrize("name", OPTIONS)
def test_the_default_does_not_hurt_where_uniform_does(name: str) -> None:
    least = 0.005 if name == "softmatch" else 0.02  # which weighs down what alignment makes doubtful
    assert accuracy(name, None) > accuracy(name, "uniform") + least


@pytest.mark.parametrize("name", ["fixmatch", "comatch"])
def test_estimated_frequencies_mend_what_a_balanced_budget_hides(name: str) -> None:
    assert accuracy(name, "estimated", balanced=True) > accuracy(name, "labels", balanced=True) + 0.04


@pytest.mark.parametrize("name", ["fixmatch", "comatch"])
def test_estimated_frequencies_stay_close_to_labels_that_are_right(name: str) -> None:
    assert accuracy(name, "estimated") > accuracy(name, "labels") - 0.01
