"""Distillation against equations 2 and 3 of SimCLRv2 and Hinton's loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from semisup.methods import Batch, Labeled, Progress, Update
from semisup.methods.distill import Distill
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"weak": ref.images(7, 2), "strong": ref.images(7, 3)}


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def check_equation(cls: type[Distill], form: Any, alpha: float, temperature: float, view: Any = "weak") -> None:
    """(1 - alpha) CE(labels) + alpha times the distillation loss, in value and gradient."""
    model, teacher = ref.regression(0), ref.regression(1)
    method = cls(model, teacher, form=form, alpha=alpha, temperature=temperature, view=view)
    wanted = ref.softmax(ref.logits(ref.weights(teacher), U[view]), temperature)

    def distillation(w: ref.Array) -> float:
        got = ref.softmax(ref.logits(w, U[view]), temperature)
        values = []
        for p, q in zip(wanted, got, strict=True):
            if form == "simclr_v2":
                values.append(-sum(p[c] * math.log(q[c]) for c in range(ref.CLASSES)))
            else:
                values.append(temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(ref.CLASSES)))
        return ref.mean(values)

    def supervised(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y)

    update = ref.first(method, given())
    ref.check_value_and_gradient(update.log["distillation"], model, distillation)
    ref.check_value_and_gradient(
        update.loss,
        model,
        lambda w: (1 - alpha) * supervised(w) + alpha * distillation(w) if alpha < 1 else distillation(w),
    )
    assert update.log.keys() == ({"distillation"} if alpha == 1 else {"supervised", "distillation"})
    if alpha < 1:
        ref.check_value_and_gradient(update.log["supervised"], model, supervised)


def check_no_labels_at_alpha_1(cls: type[Distill]) -> None:
    """With alpha = 1 neither labels nor labeled images are asked for or touched."""
    method = cls(ref.regression(0), ref.regression(1))
    assert method.views.policies("labeled") == {}
    empty = Batch(Labeled({}, torch.empty(0, dtype=torch.long)), given().unlabeled)
    wrong = Batch(Labeled({"weak": ref.images(5, 9)}, torch.full((5,), 2)), given().unlabeled)
    assert torch.equal(ref.first(method, empty).loss, ref.first(method, wrong).loss), "labels at alpha 1"


def check_teacher_is_frozen(cls: type[Distill]) -> None:
    """In eval mode whatever the method's mode, without gradient, and bit-identical after training."""
    teacher = ref.regression(1)
    teacher.neck.append(nn.Sequential(nn.Linear(ref.PIXELS, ref.PIXELS), nn.BatchNorm1d(ref.PIXELS), nn.Dropout(0.5)))
    method = cls(ref.regression(0), teacher)
    for mode in (True, False, True):
        method.train(mode)
        assert not any(module.training for module in teacher.modules()), "the teacher is in train mode"
        assert method.model.training == mode
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for _ in range(3):
        ref.run(method, given())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert method.groups()["main"] == list(method.model.parameters())


@pytest.mark.parametrize("form", ["simclr_v2", "hinton"])
@pytest.mark.parametrize(
    ("alpha", "temperature", "view"), [(1.0, 1.0, "weak"), (0.3, 4.0, "weak"), (1.0, 2.0, "strong")]
)
def test_equation(form: str, alpha: float, temperature: float, view: str) -> None:
    check_equation(Distill, form, alpha, temperature, view)


def test_alpha_0_is_supervised() -> None:
    model = ref.regression(0)
    update = ref.first(Distill(model, ref.regression(1), alpha=0.0), given())
    ref.check_value_and_gradient(update.loss, model, lambda w: ref.labeled_loss(w, X["weak"], given().labeled.y))


def test_no_labels_at_alpha_1() -> None:
    check_no_labels_at_alpha_1(Distill)


def test_teacher_is_frozen() -> None:
    check_teacher_is_frozen(Distill)


def test_student_that_agrees() -> None:
    """Hinton's loss is then 0, the cross-entropy is the teacher's entropy; neither has a gradient."""
    for form, temperature in (("hinton", 3.0), ("simclr_v2", 0.5)):
        model, teacher = ref.regression(0), ref.regression(0)
        update = ref.first(Distill(model, teacher, form=form, temperature=temperature), given())  # type: ignore[arg-type]
        p = ref.softmax(ref.logits(ref.weights(teacher), U["weak"]), temperature)
        entropy = ref.mean([-sum(value * math.log(value) for value in row) for row in p])
        ref.close(update.loss, 0.0 if form == "hinton" else entropy)
        ref.close(ref.gradient(update.loss, model), 0 * ref.weights(model), atol=1e-6)


def test_student_of_another_architecture_learns_the_teachers_predictions() -> None:
    torch.manual_seed(0)
    teacher = ref.regression(1)
    student = Classifier(ref.Layer(10), nn.Sequential(nn.ReLU()), ref.CLASSES)
    method = Distill(student, teacher).train()
    losses = [float(ref.run(method, given(), lr=0.5)[0].loss.detach()) for _ in range(60)]
    p = ref.softmax(ref.logits(ref.weights(teacher), U["weak"]))
    entropy = ref.mean([-sum(value * math.log(value) for value in row) for row in p])
    # The teacher's entropy is the least there is; seven images are learnt nearly by heart.
    assert entropy <= losses[-1] < entropy + 0.1 * (losses[0] - entropy)
    assert method.predictor() is student


def test_one_image() -> None:
    model, teacher = ref.regression(0), ref.regression(1)
    one = ref.batch(unlabeled={"weak": ref.images(1, 5)})
    p, q = (ref.softmax(ref.logits(ref.weights(m), one.unlabeled["weak"])) for m in (teacher, model))
    ref.close(ref.first(Distill(model, teacher), one).loss, ref.cross_entropy(p, q)[0])


# --- sabotage --------------------------------------------------------------------------------------------------------


class TrainModeTeacher(Distill):
    def train(self, mode: bool = True) -> TrainModeTeacher:
        nn.Module.train(self, mode)
        return self


class Swapped(Distill):
    """The student's answers are the target of the teacher's."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.distillation_loss = self._swapped
        return super().step(batch, progress)

    def _swapped(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
        log_p, log_q = ((z / temperature).log_softmax(1) for z in (student_logits, teacher_logits))
        return (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2


class NoSquare(Distill):
    """Hinton's loss without T^2."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(update.loss / self.temperature**2, log={"distillation": update.loss / self.temperature**2})


class OtherImages(Distill):
    """The teacher answers for another view than the student's."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            answers = self.teacher(batch.unlabeled["strong"])
        loss = self.distillation_loss(self.model(batch.unlabeled["weak"]), answers, self.temperature)
        yield Update(loss, log={"distillation": loss})


class SwappedAlpha(Distill):
    """alpha weighs the wrong term."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            loss = self.alpha * update.log["supervised"] + (1 - self.alpha) * update.log["distillation"]
            yield replace(update, loss=loss)


class UsesLabels(Distill):
    """Labels matter even at alpha = 1."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, loss=update.loss + batch.labeled.y.sum())


def test_frozen_check_finds_a_teacher_in_train_mode() -> None:
    with pytest.raises(AssertionError, match="train mode"):
        check_teacher_is_frozen(TrainModeTeacher)


@pytest.mark.parametrize(
    ("cls", "form", "alpha"),
    [
        (Swapped, "hinton", 1.0),
        (NoSquare, "hinton", 1.0),
        (OtherImages, "simclr_v2", 1.0),
        (SwappedAlpha, "hinton", 0.3),
    ],
)
def test_equation_finds(cls: type[Distill], form: str, alpha: float) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, form, alpha, 3.0)


def test_forms_are_told_apart() -> None:
    class Other(Distill):
        def __init__(self, model: Classifier, teacher: nn.Module, *, form: Any, **options: Any) -> None:
            other = {"hinton": "simclr_v2", "simclr_v2": "hinton"}[form]
            super().__init__(model, teacher, form=other, **options)  # type: ignore[arg-type]

    for form in ("hinton", "simclr_v2"):
        with pytest.raises(AssertionError, match="Not equal"):
            check_equation(Other, form, 1.0, 2.0)


def test_label_check_finds_labels() -> None:
    with pytest.raises(AssertionError, match="labels at alpha 1"):
        check_no_labels_at_alpha_1(UsesLabels)
