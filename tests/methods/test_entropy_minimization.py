"""Entropy minimization: the entropy of the predictions, with gradient through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.entropy_minimization import EntropyMinimization
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"weak": ref.images(9, 2)}


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def check_equation(cls: type[EntropyMinimization]) -> None:
    model = ref.regression()

    def entropy(w: ref.Array) -> float:
        probs = ref.softmax(ref.logits(w, U["weak"]))
        return ref.mean([-sum(p * math.log(p) for p in row) for row in probs])

    def total(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y) + 0.3 * entropy(w)

    update = ref.first(cls(model, unlabeled_weight=0.3), given())
    ref.check_value_and_gradient(update.log["entropy"], model, entropy)
    ref.check_value_and_gradient(update.loss, model, total)
    ref.close(update.log["supervised"], ref.labeled_loss(ref.weights(model), X["weak"], given().labeled.y))


def test_equation() -> None:
    check_equation(EntropyMinimization)


def test_the_uniform_prediction_has_the_largest_entropy_and_no_gradient() -> None:
    model = ref.regression(scale=0.0)
    entropy = ref.first(EntropyMinimization(model), given()).log["entropy"]
    ref.close(entropy, math.log(ref.CLASSES))
    ref.close(ref.gradient(entropy, model), 0.0, atol=1e-7)


def test_descent_makes_certain() -> None:
    model = ref.regression(scale=0.5)
    method = EntropyMinimization(model, unlabeled_weight=5.0)
    values = [float(ref.run(method, given(), lr=0.05)[0].log["entropy"].detach()) for _ in range(5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.01


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5)}, y=[1])
    w = ref.weights(model)
    (probs,) = ref.softmax(ref.logits(w, one.unlabeled["weak"]))
    expected = ref.labeled_loss(w, one.labeled["weak"], [1]) - 0.5 * sum(p * math.log(p) for p in probs)
    ref.close(ref.first(EntropyMinimization(model, unlabeled_weight=0.5), one).loss, expected)


def test_one_joint_forward() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    ref.run(EntropyMinimization(model), given())
    assert norm.num_batches_tracked == 1


# --- sabotage --------------------------------------------------------------------------------------------------------


def half_detached(logits: Tensor) -> Tensor:
    """-sum sg(p) log p: its gradient is zero."""
    return -(logits.detach().softmax(1) * logits.log_softmax(1)).sum(1).mean()


def other_half_detached(logits: Tensor) -> Tensor:
    """-sum p sg(log p)."""
    return -(logits.softmax(1) * logits.detach().log_softmax(1)).sum(1).mean()


def maximized(logits: Tensor) -> Tensor:
    """The sign is lost."""
    return (logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


def mean_over_classes(logits: Tensor) -> Tensor:
    """C times too weak."""
    return -(logits.softmax(1) * logits.log_softmax(1)).mean()


def of_the_mean(logits: Tensor) -> Tensor:
    """The entropy of the average prediction: small when all images are in one class."""
    probs = logits.softmax(1).mean(0)
    return -(probs * probs.log()).sum()


@pytest.mark.parametrize("loss", [half_detached, maximized, mean_over_classes, of_the_mean])
def test_equation_finds(loss: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.entropy_minimization.entropy", loss)
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(EntropyMinimization)


def test_the_other_half_has_the_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of p sum to 1, so the part through log p is zero: a stop-gradient there, and only there, is harmless."""
    monkeypatch.setattr("semisup.methods.entropy_minimization.entropy", other_half_detached)
    check_equation(EntropyMinimization)


def test_equation_finds_entropy_of_the_labeled_images() -> None:
    class Labeled(EntropyMinimization):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                logits = self.model(batch.labeled["weak"])
                entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
                loss = update.log["supervised"] + self.unlabeled_weight * entropy
                yield replace(update, loss=loss, log={**update.log, "entropy": entropy})

    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(Labeled)
