"""Mean Teacher: ramp, loss, and the teacher as an average of the student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.losses import mse_consistency
from semisup.methods import Batch, Progress, Update
from semisup.methods.mean_teacher import MeanTeacher
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"student": ref.images(7, 2), "teacher": ref.images(7, 3)}


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def teacher_of(method: MeanTeacher) -> Classifier:
    return cast(Classifier, method.teacher.module)


def check_equation(cls: type[MeanTeacher], progress: Progress = ref.START) -> None:
    """CE + w(t) (1/NC) sum of squares, in value and gradient, for a teacher that differs from its student."""
    model = ref.regression()
    method = cls(model, consistency=20.0, ramp=0.5)
    teacher_of(method).load_state_dict(ref.regression(seed=1).state_dict())
    target = ref.softmax(ref.logits(ref.weights(teacher_of(method)), U["teacher"]))
    up = min(progress.fraction / 0.5, 1.0)
    weight = 20.0 * math.exp(-5 * (1 - up) ** 2)

    def consistency(w: ref.Array) -> float:
        probs = ref.softmax(ref.logits(w, U["student"]))
        total = 0.0
        for n in range(len(probs)):
            for c in range(ref.CLASSES):
                total += (probs[n, c] - target[n, c]) ** 2
        return total / len(probs) / ref.CLASSES

    def loss(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y) + weight * consistency(w)

    update = ref.first(method, given(), progress)
    ref.check_value_and_gradient(update.log["consistency"], model, consistency)
    ref.check_value_and_gradient(update.loss, model, loss)
    ref.close(update.log["supervised"], ref.labeled_loss(ref.weights(model), X["weak"], given().labeled.y))


def check_teacher_is_the_mean(cls: type[MeanTeacher]) -> None:
    """After the warm start the teacher is the mean of all weights so far, then an average with the given decay."""
    model = ref.regression()
    method = cls(model, decay=0.75, consistency=5.0, ramp=0.0)
    seen = [ref.weights(model)]
    average = seen[0]
    for step in range(8):
        for _ in ref.drive(method, given(), Progress(step, 8)):
            pass
        seen.append(ref.weights(model))
        assert not (seen[-1] == seen[-2]).all()
        average = np.mean(seen, axis=0) if step < 3 else 0.75 * average + 0.25 * seen[-1]
        ref.close(ref.weights(teacher_of(method)), average)


def check_teacher_gets_no_gradient(cls: type[MeanTeacher]) -> None:
    method = cls(ref.regression(), ramp=0.0)
    batch = given()
    batch.unlabeled["teacher"].requires_grad_()
    ref.first(method, batch).loss.backward()
    assert batch.unlabeled["teacher"].grad is None
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.model.parameters())


def check_ramp(cls: type[MeanTeacher]) -> None:
    method = cls(ref.regression(), consistency=1.0, ramp=0.4)
    values = {0: 0.0067379, 20: 0.2865048, 40: 1.0, 99: 1.0}
    for step, value in values.items():
        assert method.weight(Progress(step, 100)) == pytest.approx(value, rel=1e-5)
    assert method.weight(Progress(39, 100)) < 1
    assert cls(ref.regression(), consistency=7.0, ramp=0.0).weight(Progress(0, 100)) == 7.0


@pytest.mark.parametrize("step", [0, 3, 9])
def test_equation(step: int) -> None:
    check_equation(MeanTeacher, Progress(step, 10))


def test_teacher_is_the_mean_of_the_weights() -> None:
    check_teacher_is_the_mean(MeanTeacher)


def test_teacher_gets_no_gradient() -> None:
    check_teacher_gets_no_gradient(MeanTeacher)


def test_ramp() -> None:
    check_ramp(MeanTeacher)


def test_teacher_is_evaluated_and_trains_in_train_mode() -> None:
    method = MeanTeacher(ref.regression()).eval().train()
    assert method.predictor() is teacher_of(method)
    assert method.teacher.module.training


def test_teacher_has_batch_statistics_of_its_own() -> None:
    """Those of its own views under its own weights: the student's would not fit the averaged weights."""
    model = ref.regression()
    model.neck.append(nn.BatchNorm1d(ref.PIXELS))
    method = MeanTeacher(model).train()
    ref.run(method, given())
    norm = teacher_of(method).neck[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    ref.close(norm.running_mean, 0.1 * U["teacher"].flatten(1).mean(0).double().numpy())


# --- sabotage --------------------------------------------------------------------------------------------------------


class Usb(MeanTeacher):
    """USB's meanteacher.py:55: the student's logits come from the teacher's output."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            logits_teacher = self.teacher.module(batch.unlabeled["teacher"])
        supervised = F.cross_entropy(self.model(batch.labeled["weak"]), batch.labeled.y)
        consistency = mse_consistency(logits_teacher, logits_teacher.softmax(1))
        yield Update(
            supervised + self.weight(progress) * consistency,
            log={"supervised": supervised, "consistency": consistency},
        )
        self.teacher.update(self.model)


class SumOverClasses(MeanTeacher):
    """C times too strong."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            consistency = ref.CLASSES * update.log["consistency"]
            loss = update.log["supervised"] + self.weight(progress) * consistency
            yield replace(update, loss=loss, log={**update.log, "consistency": consistency})


class BothBranches(MeanTeacher):
    """Gradient through the teacher as well, as in the Π-model."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **options)
        self.teacher.module.requires_grad_(True)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            target = self.teacher.module(batch.unlabeled["teacher"]).softmax(1)
            consistency = mse_consistency(self.model(batch.unlabeled["student"]), target)
            yield replace(update, loss=update.log["supervised"] + self.weight(progress) * consistency)


class Late(MeanTeacher):
    """The average is taken before the update."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before = copy.deepcopy(self.model)
        self.teacher.update(before)
        yield next(iter(super().step(batch, progress)))


class ColdStart(MeanTeacher):
    """The random start lingers."""

    def __init__(self, model: Classifier, **options: Any) -> None:
        super().__init__(model, **options)
        self.teacher.step = 10**9


class LinearRamp(MeanTeacher):
    """TorchSSL's ramp under the paper's name."""

    def weight(self, progress: Progress) -> float:
        return self.consistency * (min(progress.fraction / self.ramp, 1.0) if self.ramp else 1.0)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Usb, check_equation),
        (SumOverClasses, check_equation),
        (LinearRamp, check_equation),
        (BothBranches, check_teacher_gets_no_gradient),
        (Late, check_teacher_is_the_mean),
        (ColdStart, check_teacher_is_the_mean),
        (LinearRamp, check_ramp),
    ],
)
def test_check_finds(cls: type[MeanTeacher], check: Callable[[type[MeanTeacher]], None]) -> None:
    with pytest.raises(AssertionError):
        check(cls)
