"""Π-model against algorithm 1 of Laine and Aila."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from semisup.losses import mse_consistency
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.pi_model import PiModel
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"first": ref.images(7, 2), "second": ref.images(7, 3)}
LATE = Progress(9, 10)


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def check_equation(cls: type[PiModel], progress: Progress = LATE, *, detach: bool = True) -> None:
    """CE + w(t) (1/NC) sum of squares; the gradient runs through the second prediction, or through both."""
    model = ref.regression()
    target = ref.softmax(ref.logits(ref.weights(model), U["first"]))
    weight = 20.0 * math.exp(-5 * (1 - min(progress.fraction / 0.5, 1.0)) ** 2)

    def consistency(w: ref.Array) -> float:
        one = target if detach else ref.softmax(ref.logits(w, U["first"]))
        other = ref.softmax(ref.logits(w, U["second"]))
        squares = [(one[n, c] - other[n, c]) ** 2 for n in range(len(one)) for c in range(ref.CLASSES)]
        return sum(squares) / len(one) / ref.CLASSES

    def total(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y) + weight * consistency(w)

    update = ref.first(cls(model, consistency=20.0, ramp=0.5, detach=detach), given(), progress)
    ref.check_value_and_gradient(update.log["consistency"], model, consistency)
    ref.check_value_and_gradient(update.loss, model, total)
    ref.close(update.log["supervised"], ref.labeled_loss(ref.weights(model), X["weak"], given().labeled.y))


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("step", [0, 3, 9])
def test_equation(step: int, detach: bool) -> None:
    check_equation(PiModel, Progress(step, 10), detach=detach)


def test_equal_views_of_a_deterministic_network_agree() -> None:
    model = ref.regression()
    batch = given()
    batch.unlabeled.views["second"] = batch.unlabeled["first"].clone()
    consistency = ref.first(PiModel(model), batch).log["consistency"]
    assert float(consistency.detach()) == 0.0
    assert not ref.gradient(consistency, model).any()


def test_dropout_makes_equal_views_disagree() -> None:
    model = ref.regression()
    model.neck.append(nn.Dropout(0.5))
    batch = given()
    batch.unlabeled.views["second"] = batch.unlabeled["first"].clone()
    assert float(ref.first(PiModel(model).train(), batch).log["consistency"].detach()) > 0.01


def test_opposite_certainties_are_2_over_c_apart() -> None:
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.weight[0, 0], model.head.weight[1, 0] = 100.0, -100.0
    plus = torch.zeros(1, 1, 2, 2)
    plus[..., 0, 0] = 1.0
    batch = ref.batch({"weak": plus}, {"first": plus, "second": -plus})
    ref.close(ref.first(PiModel(model), batch).log["consistency"], 2 / ref.CLASSES)


def test_which_view_is_first_does_not_matter_where_both_learn() -> None:
    model = ref.regression()
    swapped = Unlabeled({"first": U["second"], "second": U["first"]}, given().unlabeled.index)
    one = ref.first(PiModel(model, detach=False), given()).log["consistency"]
    other = ref.first(PiModel(model, detach=False), Batch(given().labeled, swapped)).log["consistency"]
    ref.close(one, float(other.detach()))
    ref.close(ref.gradient(one, model), ref.gradient(other, model))


def test_one_joint_forward() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    ref.run(PiModel(model), given())
    assert norm.num_batches_tracked == 1


# --- sabotage --------------------------------------------------------------------------------------------------------


class Consistency(PiModel):
    """A Π-model with another consistency term."""

    def term(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            own = update.log["consistency"]
            first = self.model(batch.unlabeled["first"])
            other = self.term(first.detach() if self.detach else first, self.model(batch.unlabeled["second"]))
            weight = float(((update.loss - update.log["supervised"]) / own).detach())
            yield replace(
                update, loss=update.log["supervised"] + weight * other, log={**update.log, "consistency": other}
            )


class BothBranches(PiModel):
    """Gradient through both, as in the paper. The value stays what it is."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **{**options, "detach": False})


class OneBranch(PiModel):
    """Gradient through one, where both are asked for."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **{**options, "detach": True})


class SumOverClasses(Consistency):
    """C times too strong."""

    def term(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first.softmax(1) - second.softmax(1)).square().sum(1).mean()


class OnLogits(Consistency):
    """Logits are compared instead of probabilities."""

    def term(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).square().mean()


class SameView(Consistency):
    """Looks at one view twice."""

    def term(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return mse_consistency(second, second.softmax(1))


class NoRamp(PiModel):
    """Full weight from the first step on."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **{**options, "ramp": 0.0})


@pytest.mark.parametrize("cls", [BothBranches, SumOverClasses, OnLogits, SameView])
def test_equation_finds(cls: type[PiModel]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)


def test_equation_finds_a_detached_target_where_both_learn() -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(OneBranch, detach=False)


def test_equation_finds_a_missing_ramp() -> None:
    check_equation(NoRamp)  # after the ramp
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(NoRamp, Progress(3, 10))
