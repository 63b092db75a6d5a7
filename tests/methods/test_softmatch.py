"""SoftMatch against the equations of the paper, with the authors' two sigmas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from semisup.losses import align_distribution, pseudo_label_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.softmatch import SoftMatch, truncated_gaussian
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
CLASSES = range(ref.CLASSES)


def given(seed: int = 2, n: int = 9) -> Batch:
    return ref.batch(
        {name: view.clone() for name, view in X.items()},
        {"weak": ref.images(n, seed, scale=0.7), "strong": ref.images(n, seed + 1)},
    )


def check_equation(cls: type[SoftMatch], steps: int = 3, **options: Any) -> list[float]:
    """Loss, terms, guesses, gradient and state of some steps; returns the mean weight at each."""
    model = ref.regression(scale=1.5)
    method = cls(model, **{"prior": "uniform", **options})
    m: float = options.get("momentum", 0.999)
    lam: float = options.get("unlabeled_weight", 1.0)
    n: float = options.get("n_sigma", 2.0)
    mu, var, guesses = 1 / 3, 1.0, [0.0] * 3
    means = []
    for step in range(steps):
        batch = given(2 * step + 2)
        probs = ref.softmax(ref.logits(ref.weights(model), batch.unlabeled["weak"]))
        labels = ref.likeliest(probs)
        if options.get("align", True):
            now = [ref.mean([row[c] for row in probs]) for c in CLASSES]
            guesses = [m * guesses[c] + (1 - m) * now[c] for c in CLASSES] if step else now
            probs = np.array([[p / 3 / g for p, g in zip(row, guesses, strict=True)] for row in probs])
            probs = np.array([row / sum(row) for row in probs])
        confidence = [max(row) for row in probs]
        batch_mean = ref.mean(confidence)
        batch_var = sum((c - batch_mean) ** 2 for c in confidence) / (len(confidence) - 1)
        mu, var = m * mu + (1 - m) * batch_mean, m * var + (1 - m) * batch_var
        weights = [math.exp(-((min(c - mu, 0) / (math.sqrt(var) / n)) ** 2) / 2) for c in confidence]

        def unlabeled(w: ref.Array, b: Batch = batch, labels: list[int] = labels, by: list[float] = weights) -> float:
            return ref.kept_loss(w, b.unlabeled["strong"], labels, by)

        def total(w: ref.Array, unlabeled: Callable[[ref.Array], float] = unlabeled, b: Batch = batch) -> float:
            return ref.labeled_loss(w, X["weak"], b.labeled.y) + lam * unlabeled(w)

        update = ref.first(method, batch)
        ref.check_value_and_gradient(update.loss, model, total)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.close(update.log["kept"], ref.mean(weights))
        ref.close(update.log["confidence"], batch_mean)
        ref.close(method.mean, mu)
        ref.close(method.variance, var)
        if method.alignment is not None:
            ref.close(method.alignment.average.value, np.array(guesses))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        ref.close(update.pseudo_labels.mask, np.array(weights))
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
        means.append(ref.mean(weights))
    return means


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.3},
        {"momentum": 0.3, "align": False, "unlabeled_weight": 3.0},
        {"momentum": 0.0, "n_sigma": 1.0},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    assert all(0.3 < mean < 1 for mean in check_equation(SoftMatch, **options)), "the weights are trivial"


def test_the_paper_s_momentum_counts_all_at_first() -> None:
    ref.close(np.array(check_equation(SoftMatch)), np.ones(3), rtol=1e-3)


@pytest.mark.parametrize(("n_sigma", "weight"), [(2.0, 0.1353), (1.0, 0.6065)])
def test_weight_by_hand(n_sigma: float, weight: float) -> None:
    """methods.md 3.14: 1 from the mean on, e^-2 (n = 2) or e^-.5 (n = 1) one std below it."""
    confidence = torch.tensor([0.9, 0.7, 0.6, 0.5])
    got = truncated_gaussian(confidence, torch.tensor(0.7), torch.tensor(0.01), n_sigma)
    ref.close(got, np.array([1, 1, weight, weight**4]), rtol=1e-3)


def test_no_variance_is_a_threshold_at_the_mean() -> None:
    got = truncated_gaussian(torch.tensor([0.5, 0.6, 0.7]), torch.tensor(0.6), torch.tensor(0.0), 2.0)
    assert got.tolist() == [0, 1, 1]


def test_labels_are_those_before_the_alignment() -> None:
    """(.5, .3, .2) / (.6, .2, .2) is (.83, 1.5, 1): class 1 for the confidence, class 0 for the label."""
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    method = SoftMatch(model, momentum=0.999, prior="uniform")
    assert method.alignment is not None
    method.alignment.average.value.copy_(torch.tensor([0.6, 0.2, 0.2]))
    method.alignment.average.started.fill_(True)
    update = ref.first(method, given())
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == [0] * 9
    ref.close(update.log["confidence"], 1.5 / (0.5 / 0.6 + 1.5 + 1), rtol=1e-3)


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}, y=[1])
    method = SoftMatch(model, momentum=0.0)
    update = ref.first(method, one)
    assert float(method.variance) == 0
    w = ref.weights(model)
    label = int(ref.logits(w, one.unlabeled["weak"])[0].argmax())
    expected = ref.labeled_loss(w, one.labeled["weak"], [1]) + ref.labeled_loss(w, one.unlabeled["strong"], [label])
    ref.close(update.loss, expected)


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(SoftMatch(ref.regression()), given(), "unlabeled", "weak")


# --- sabotage --------------------------------------------------------------------------------------------------------


def rewired(relabel: Callable[[SoftMatch, Batch, Update], tuple[torch.Tensor, torch.Tensor]]) -> type[SoftMatch]:
    """A SoftMatch that uses other (labels, weights)."""

    class Rewired(SoftMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                labels, weight = relabel(self, batch, update)
                unlabeled = pseudo_label_cross_entropy(self.model(batch.unlabeled["strong"]), labels, weight)
                yield replace(update, loss=update.log["supervised"] + self.unlabeled_weight * unlabeled)

    return Rewired


def _answers(method: SoftMatch, batch: Batch, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    assert update.pseudo_labels is not None
    return update.pseudo_labels.labels, update.pseudo_labels.mask


def _aligned(method: SoftMatch, batch: Batch) -> torch.Tensor:
    probs = method.model(batch.unlabeled["weak"]).softmax(1).detach()
    assert method.alignment is not None
    return align_distribution(probs, torch.full((3,), 1 / 3), method.alignment.average.value)


def _aligned_labels(method: SoftMatch, batch: Batch, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    return _aligned(method, batch).argmax(1), _answers(method, batch, update)[1]


def _both_sides(method: SoftMatch, batch: Batch, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    away = _aligned(method, batch).amax(1) - method.mean
    return _answers(method, batch, update)[0], torch.exp(-(away**2) * method.n_sigma**2 / (2 * method.variance))


def _sigma_for_variance(method: SoftMatch, batch: Batch, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = _aligned(method, batch).amax(1)
    weight = truncated_gaussian(confidence, method.mean, method.variance.sqrt(), method.n_sigma)
    return _answers(method, batch, update)[0], weight


def _normalized(method: SoftMatch, batch: Batch, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    labels, weight = _answers(method, batch, update)
    return labels, weight / weight.mean()


def test_rewiring_alone_changes_nothing() -> None:
    check_equation(rewired(_answers), momentum=0.3)


class UniformStart(SoftMatch):
    """The running mean of guesses begins uniform."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert self.alignment is not None
        self.alignment.average.started.fill_(True)


def test_equation_finds_a_uniform_start() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(UniformStart, momentum=0.3)


@pytest.mark.parametrize("relabel", [_aligned_labels, _both_sides, _sigma_for_variance, _normalized])
def test_equation_finds(relabel: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(rewired(relabel), momentum=0.3)
