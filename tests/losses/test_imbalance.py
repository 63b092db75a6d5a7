"""The loss of unequal classes, written once more from the papers, image by image."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.losses import LabelLoss
from semisup.methods import METHODS
from semisup.methods.base import Batch, Labeled, Progress, Unlabeled
from semisup.models import ModelSpec, build_classifier

LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2])  # of class 3 there is none: it counts as one
COUNTS = [6, 2, 1, 1]


def slow(logits: Tensor, labels: Tensor, *, weights: bool, tau: float, gamma: float) -> Tensor:
    terms = []
    for row, k in zip(logits, labels.tolist(), strict=True):
        adjusted = [row[c] + tau * math.log(COUNTS[c] / 10) for c in range(4)]
        probability = adjusted[k].exp() / torch.stack(adjusted).exp().sum()
        weight = 10 / (4 * COUNTS[k]) if weights else 1.0
        terms.append(-weight * (1 - probability) ** gamma * probability.log())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_value_and_gradient(weights: bool, tau: float, gamma: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 3])
    loss = LabelLoss.of(LABELS, class_weights=weights, logit_adjustment=tau, focal=gamma, num_classes=4)
    wanted = slow(logits, y, weights=weights, tau=tau, gamma=gamma)
    torch.testing.assert_close(loss(logits, y), wanted)
    (ours,), (theirs,) = torch.autograd.grad(loss(logits, y), logits), torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(ours, theirs)
    assert loss(logits.double(), y).dtype == torch.float64 and loss(logits.bfloat16(), y).dtype == torch.float32


def test_the_default_is_bit_for_bit_the_cross_entropy() -> None:
    logits, y = torch.randn(7, 4), torch.arange(7) % 4
    assert torch.equal(LabelLoss()(logits, y, 0.1), F.cross_entropy(logits, y, label_smoothing=0.1))


def test_weights_are_1_on_average_over_the_labels() -> None:
    loss = LabelLoss.of(LABELS[:-1], class_weights=True, logit_adjustment=0, focal=0, num_classes=2)
    assert loss.weights is not None and loss.weights[LABELS[:-1]].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_of_certain_predictions_has_a_finite_slope(
    gamma: float, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of older versions of torch, clamp has a slope at its bound too."""
    monkeypatch.setattr(Tensor, "clamp", lambda x, min: torch.where(x >= min, x, min))
    logits = torch.tensor([[90.0, 0.0], [0.0, 90.0]], requires_grad=True)
    loss = LabelLoss(gamma=gamma)(logits, torch.tensor([0, 0]), smoothing)
    (slope,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite()) and bool(slope.isfinite().all()) and bool(slope[1].all())


@pytest.mark.parametrize("name", sorted(name for name, cls in METHODS.items() if cls.reads_loss))
def test_every_method_that_says_so_reads_the_loss(name: str) -> None:
    """Another loss of the labels is another update."""

    def loss_with(loss: LabelLoss) -> float:
        torch.manual_seed(0)
        model = build_classifier(ModelSpec("cnn", {"width": 4}, 1, 8, 4))
        given = {"num_images": 6, "num_unlabeled": 6, "num_labeled": 4}
        cls = METHODS[name]
        wanted = {key: value for key, value in given.items() if key in cls.__init__.__code__.co_varnames}
        method = cls(model, **wanted)  # type: ignore[call-arg]
        labeled = {view: torch.rand(4, 1, 8, 8) for view in method.views.policies("labeled")}
        unlabeled = {view: torch.rand(6, 1, 8, 8) for view in method.views.policies("unlabeled")}
        target = torch.full((6, 4), 0.25)
        batch = Batch(
            Labeled(labeled, torch.tensor([0, 0, 0, 1]), torch.arange(4), loss=loss),
            Unlabeled(unlabeled, torch.arange(6), target),
        )
        return next(iter(method.step(batch, Progress(1, 2)))).loss.item()

    adjusted = LabelLoss.of(LABELS, class_weights=True, logit_adjustment=1.0, focal=1.0, num_classes=4)
    assert loss_with(LabelLoss()) == loss_with(LabelLoss()) != loss_with(adjusted)
