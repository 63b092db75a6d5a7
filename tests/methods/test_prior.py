"""Which class frequencies guesses are aligned with: counted, given, or found by expectation-maximization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.errors import SemisupError
from semisup.methods.parts.prior import AlignToAverage, AlignToRecent, ClassPrior, Prior
from tests.methods import methods_reference as ref

CLASSES = range(3)
TRUE = [0.7, 0.2, 0.1]


def predictions(frequencies: list[float], n: int = 6000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exact posteriors under equal frequencies of points drawn by `frequencies` from three Gaussians, and classes."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor(frequencies), n, replacement=True, generator=draw)
    centers = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    x = centers[y] + torch.randn(n, 2, generator=draw)
    return (-((x[:, None] - centers) ** 2).sum(2) / 2).softmax(1), y


def saerens(probs: ref.Array, of_labels: list[float], pi: list[float]) -> list[float]:
    """One iteration of Saerens et al., eq. 9, a number at a time."""
    rows = []
    for row in probs:
        scaled = [row[c] * pi[c] / of_labels[c] for c in CLASSES]
        rows.append([value / sum(scaled) for value in scaled])
    return [ref.mean([row[c] for row in rows]) for c in CLASSES]


def check_estimate(cls: type[ClassPrior]) -> None:
    """Iteration by iteration the equation; and in the end the frequencies that the points were drawn by."""
    prior = cls("estimated", 3, 0.9)
    counts, pi = [1.0] * 3, [0.0] * 3
    for step in range(3):
        probs, _ = predictions(TRUE, n=50, seed=step)
        labels = [0, 1, 2, 2, step]
        counts = [count + labels.count(c) for c, count in enumerate(counts)]
        of_labels = [count / sum(counts) for count in counts]
        pi = pi if step else of_labels
        new = saerens(probs.double().numpy(), of_labels, pi)
        pi = [0.9 * old + 0.1 * now for old, now in zip(pi, new, strict=True)]
        ref.close(prior(probs, torch.tensor(labels)), np.array(pi), rtol=1e-4)
    probs, y = predictions(TRUE)
    for part in probs.split(64) * 4:
        found = prior(part, torch.tensor([0, 1, 2]))
    shares = torch.bincount(y, minlength=3) / len(y)
    torch.testing.assert_close(found, shares, atol=0.04, rtol=0)
    assert abs(float(probs[:, 0].mean() - shares[0])) > 0.1, "the mean prediction would do: too easy an example"


def test_estimated_frequencies_are_those_of_the_unlabeled_images() -> None:
    check_estimate(ClassPrior)


def test_the_estimate_corrects_for_unequal_labels() -> None:
    """Predictions made under the labels' 6:2:2, of images that are equally frequent."""
    probs, _ = predictions([1 / 3] * 3)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    of_labels = torch.tensor([0.6, 0.2, 0.2])
    under_labels = probs * of_labels
    prior = ClassPrior("estimated", 3, 0.9)
    for part in (under_labels / under_labels.sum(1, keepdim=True)).split(64) * 4:
        found = prior(part, labels)
    torch.testing.assert_close(found, torch.full((3,), 1 / 3), atol=0.05, rtol=0)


def test_labels_are_counted_and_begin_with_one_of_each_class() -> None:
    prior = ClassPrior("labels", 3, 0.9)
    probs, _ = predictions(TRUE, n=5)
    ref.close(prior(probs, torch.tensor([0, 0, 1])), np.array([3, 2, 1]) / 6)
    ref.close(prior(probs, torch.tensor([0, 0, 0])), np.array([6, 2, 1]) / 9)


@pytest.mark.parametrize(("prior", "expected"), [("uniform", [1 / 3] * 3), ([0.5, 0.5, 0.0], [0.5, 0.5, 0.0])])
def test_constant_frequencies(prior: Prior, expected: list[float]) -> None:
    module = ClassPrior(prior, 3, 0.9)
    for seed in range(3):
        ref.close(module(predictions(TRUE, n=9, seed=seed)[0], torch.tensor([0, 0])), np.array(expected))


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.5, 0.6, -0.1], [0.5, 0.5, 0.5]])
def test_a_list_that_is_no_distribution_over_the_classes_is_refused(prior: Any) -> None:
    with pytest.raises(SemisupError, match=r"method\.prior: must be 3 numbers"):
        ClassPrior(prior, 3, 0.9)


@pytest.mark.parametrize(
    "build",
    [
        lambda prior: AlignToAverage(prior, 3, 0.9, from_first=True),
        lambda prior: AlignToRecent(prior, 3, 8),
        lambda prior: AlignToRecent(prior, 3, 8, from_uniform=True),
    ],
)
def test_aligned_predictions_have_the_wanted_frequencies_on_average(build: Any) -> None:
    align = build([0.6, 0.3, 0.1])
    probs, _ = predictions([1 / 3] * 3)
    sharp = probs**0.2  # nearly alike, so that scaling moves the mean where it should
    sharp = sharp / sharp.sum(1, keepdim=True)
    found = torch.stack([align(part, torch.tensor([0])).mean(0) for part in sharp.split(200)])[10:].mean(0)
    torch.testing.assert_close(found, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)


# --- sabotage --------------------------------------------------------------------------------------------------------


class MeanPrediction(ClassPrior):
    """Takes the plain mean of the predictions for the frequencies."""

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        self.frequencies.lerp_(probs.mean(0), 1 - self.momentum)
        return self.frequencies


class UniformStart(ClassPrior):
    """Begins uniform, whatever the labels are."""

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        self.started.fill_(True)
        return super().forward(probs, labels)


class ForgetsLabels(ClassPrior):
    """Takes the labels for equally frequent."""

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        return super().forward(probs, torch.arange(3))


@pytest.mark.parametrize("cls", [MeanPrediction, UniformStart, ForgetsLabels])
def test_estimate_check_finds(cls: type[ClassPrior]) -> None:
    with pytest.raises(AssertionError):
        check_estimate(cls)
