"""The supervised baseline against its equation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.errors import SemisupError
from semisup.losses import sup_con
from semisup.methods import Batch, Progress, Update
from semisup.methods.supervised import Supervised
from tests.methods import methods_reference as ref

X = {"weak": ref.images(6, 1), "strong": ref.images(6, 2)}


def check_equation(cls: type[Supervised], **options: Any) -> None:
    model = ref.regression()
    given = ref.batch(X)
    update = ref.first(cls(model, **options), given)
    view = "strong" if options.get("strong") else "weak"

    def reference(w: ref.Array) -> float:
        return ref.labeled_loss(w, X[view], given.labeled.y, options.get("label_smoothing", 0.0))

    ref.check_value_and_gradient(update.loss, model, reference)
    ref.close(update.log["supervised"], reference(ref.weights(model)))


def check_frozen(cls: type[Supervised]) -> None:
    """Only the head moves, and dropout inside the encoder is off although the method is in train mode."""
    model = ref.regression()
    model.neck.append(nn.Sequential(nn.Linear(ref.PIXELS, ref.PIXELS), nn.BatchNorm1d(ref.PIXELS), nn.Dropout(0.5)))
    method = cls(model, freeze=True).train()
    assert method.groups() == {"main": [model.head.weight, model.head.bias]}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = ref.batch(X)
    first, second = (ref.first(method, given).loss for _ in range(2))
    assert torch.equal(first, second), "the encoder is noisy"
    ref.run(method, given)
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value) != name.startswith("head."), name


OPTIONS: list[dict[str, Any]] = [
    {},
    {"strong": True},
    {"label_smoothing": 0.2},
    {"strong": True, "label_smoothing": 0.1},
]


def test_supcon_is_added_on_the_features() -> None:
    """On pixels as features the term is a constant; its weight and temperature count."""
    given = ref.batch(X)
    plain = ref.first(Supervised(ref.regression()), given)
    update = ref.first(Supervised(ref.regression(), supcon=0.3, supcon_temperature=0.5), given)
    contrast = sup_con(X["weak"].flatten(1), given.labeled.y, 0.5)
    ref.close(update.log["supcon"], float(contrast))
    ref.close(update.log["supervised"], float(plain.loss.detach()))
    ref.close(update.loss, float((plain.loss + 0.3 * contrast).detach()))
    with pytest.raises(SemisupError, match=r"method\.supcon"):
        Supervised(ref.regression(), supcon=0.1, freeze=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_equation(options: dict[str, Any]) -> None:
    check_equation(Supervised, **options)


@pytest.mark.parametrize("strong", [False, True])
def test_asks_for_its_view_only(strong: bool) -> None:
    views = Supervised(ref.regression(), strong=strong).views
    assert views.policies("labeled") == ({"strong": "randaugment"} if strong else {"weak": "weak"})
    assert views.policies("unlabeled") == {}


def test_one_image() -> None:
    model = ref.regression()
    given = ref.batch({"weak": ref.images(1, 3)}, y=[2])
    loss = ref.first(Supervised(model), given).loss
    ref.close(loss, ref.labeled_loss(ref.weights(model), given.labeled["weak"], [2]))


def test_freeze() -> None:
    check_frozen(Supervised)


def test_freeze_survives_a_change_of_mode() -> None:
    method = Supervised(ref.regression(), freeze=True)
    assert not method.eval().train().model.training
    assert Supervised(ref.regression()).train().model.training


# --- sabotage --------------------------------------------------------------------------------------------------------


class WrongView(Supervised):
    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        other = {"weak": "strong", "strong": "weak"}[self.view]
        loss = F.cross_entropy(self.model(batch.labeled[other]), batch.labeled.y, label_smoothing=self.label_smoothing)
        yield Update(loss, log={"supervised": loss})


class Sum(Supervised):
    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = F.cross_entropy(self.model(batch.labeled[self.view]), batch.labeled.y, reduction="sum")
        yield Update(loss, log={"supervised": loss})


@pytest.mark.parametrize("cls", [WrongView, Sum])
@pytest.mark.parametrize("strong", [False, True])
def test_equation_finds(cls: type[Supervised], strong: bool) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, strong=strong)


def test_equation_finds_forgotten_smoothing() -> None:
    class Unsmoothed(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            self.label_smoothing = 0.0
            return super().step(batch, progress)

    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(Unsmoothed, label_smoothing=0.2)


def test_frozen_check_finds_train_mode() -> None:
    class Trains(Supervised):
        def train(self, mode: bool = True) -> Trains:
            nn.Module.train(self, mode)
            return self

    with pytest.raises(AssertionError):
        check_frozen(Trains)
