"""Meta Pseudo Labels: the sign and size of the student's feedback, and what the teacher makes of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import soft_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.meta_pseudo_labels import MetaPseudoLabels
from semisup.models import Classifier
from tests.methods import methods_reference as ref

X = {"weak": ref.images(6, 1)}
U = {"weak": ref.images(9, 2), "strong": ref.images(9, 3)}
PLAIN: dict[str, Any] = {"student_start": 0.0, "baseline_decay": 0.0}
"""Nothing waits and nothing is subtracted."""
SMOOTHING = 0.15
"""The default."""


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def build(cls: type[MetaPseudoLabels], student: int = 0, teacher: int = 1, **options: Any) -> MetaPseudoLabels:
    """Two different networks."""
    return cls(ref.regression(student), ref.regression(teacher, scale=1.5), **{**PLAIN, **options})


def step(method: MetaPseudoLabels, lr: float, progress: Progress = ref.START) -> tuple[Update, Update]:
    """Apply the student's update with rate `lr` and return it and the teacher's, which is not applied."""
    updates = method.step(given(), progress)
    student = next(updates)
    assert student.group == "student"
    parameters = list(method.student.parameters())
    slopes = torch.autograd.grad(student.loss, parameters)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            p.sub_(lr * slope)
    teacher = next(updates)
    assert teacher.group == "teacher"
    return student, teacher


def labels_of(update: Update) -> list[int]:
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.mask.tolist() == [1.0] * 9
    return update.pseudo_labels.labels.tolist()


# --- the student's feedback ------------------------------------------------------------------------------------------


def check_taylor(cls: type[MetaPseudoLabels]) -> None:
    """h / (eta <grad CE_l(after), grad CE_u(before)>) tends to 1 as the student's rate eta does to 0.

    The gradients are central differences of equations that know nothing of the method. A wrong sign tends to -1.
    """
    far, signs = [], set()
    for lr in (0.1, 0.01, 0.001):
        ratios = []
        for student_seed, teacher_seed in ((2, 1), (1, 5), (0, 4), (2, 7)):  # the last two give labels that hurt
            torch.manual_seed(teacher_seed)
            method = build(cls, student_seed, teacher_seed)
            before = ref.weights(method.student)
            student, update = step(method, lr)
            after = ref.weights(method.student)
            labels = labels_of(student)
            loss_u = partial(ref.labeled_loss, x=U["strong"], y=labels, smoothing=SMOOTHING)
            slope_u = ref.numeric_gradient(loss_u, before)
            slope_l = ref.numeric_gradient(partial(ref.labeled_loss, x=X["weak"], y=given().labeled.y), after)
            first_order = lr * float((slope_l * slope_u).sum())
            ratios.append(float(update.log["help"]) / first_order)
            signs.add(first_order > 0)
        far.append(max(abs(ratio - 1) for ratio in ratios))
    if len(signs) < 2:
        pytest.fail("only one sign was tried")
    # The third is no tenth of the second: float32 keeps four digits of a difference that small.
    assert far[0] > 2 * far[1], f"no first-order measure: {far}"
    assert max(far[1:]) < 0.02, f"no first-order measure: {far}"


def test_taylor() -> None:
    check_taylor(MetaPseudoLabels)


def check_student(cls: type[MetaPseudoLabels]) -> None:
    """The student's loss is the smoothed cross-entropy with the teacher's labels on the strong views, and no more."""
    method = build(cls)
    before = copy.deepcopy(method.student)
    torch.manual_seed(0)
    student, _ = step(method, 0.1)
    ref.close(student.loss, ref.labeled_loss(ref.weights(before), U["strong"], labels_of(student), SMOOTHING))
    assert student.log.keys() == {"student"}


def test_student() -> None:
    check_student(MetaPseudoLabels)


def test_student_is_measured_in_train_mode() -> None:
    """h compares what the student learns by: train mode. BatchNorm remembers the forward that it learns from alone."""
    model = ref.regression()
    model.neck.append(nn.BatchNorm1d(ref.PIXELS))
    forwards: list[tuple[int, bool]] = []
    model.neck[0].register_forward_hook(lambda norm, inputs, _: forwards.append((len(inputs[0]), norm.training)))
    method = MetaPseudoLabels(model, ref.regression(1), **PLAIN).train()
    ref.run(method, given())
    norm = method.student.neck[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert forwards == [(6, True), (9, True), (6, True)]
    assert norm.num_batches_tracked == 1


def test_labels_are_drawn_from_the_teacher() -> None:
    method = build(MetaPseudoLabels)
    logits = torch.tensor([[0.5, -1.0, 1.5]])
    torch.manual_seed(0)
    draws = method.draw_labels(logits.expand(20_000, 3))
    share = torch.bincount(draws, minlength=3) / 20_000
    # Four standard deviations of the largest: 4 sqrt(.25 / 20,000) = .014.
    torch.testing.assert_close(share, logits.softmax(1)[0], atol=0.014, rtol=0)


def test_hard_labels_are_the_best_class() -> None:
    method = build(MetaPseudoLabels, hard=True)
    student, _ = step(method, 0.1)
    expected = ref.logits(ref.weights(method.teacher), U["strong"]).argmax(1)
    assert labels_of(student) == expected.tolist()


# --- the teacher -----------------------------------------------------------------------------------------------------


def check_teacher(cls: type[MetaPseudoLabels], fraction: int = 5) -> None:
    """CE with smoothing + ramp * 8 * masked CE with sharpened weak answers + h * CE of the student's very labels."""
    method = build(cls, uda_ramp=0.8, uda_threshold=0.7, uda_temperature=0.4, label_smoothing=0.2)
    torch.manual_seed(0)
    student, update = step(method, 0.3, Progress(fraction, 10))
    labels, help_ = labels_of(student), float(update.log["help"])
    weak = ref.logits(ref.weights(method.teacher), U["weak"])
    target = ref.softmax(weak, 0.4)
    mask = [float(max(row) >= 0.7) for row in target]
    unsharpened = [float(max(row) >= 0.7) for row in ref.softmax(weak)]
    if abs(help_) < 1e-3 or not 0 < ref.mean(mask) < 1 or mask == unsharpened:
        pytest.fail("too special an example to tell mistakes")
    ramp = min(fraction / 10 / 0.8, 1.0)

    def supervised(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y, smoothing=0.2)

    def uda(w: ref.Array) -> float:
        losses = ref.cross_entropy(target, ref.softmax(ref.logits(w, U["strong"])))
        return sum(m * loss for m, loss in zip(mask, losses, strict=True)) / len(losses)

    def feedback(w: ref.Array) -> float:
        return help_ * ref.labeled_loss(w, U["strong"], labels)

    ref.check_value_and_gradient(update.log["teacher_supervised"], method.teacher, supervised)
    ref.check_value_and_gradient(update.log["teacher_uda"], method.teacher, uda)
    ref.check_value_and_gradient(update.log["feedback"], method.teacher, feedback)
    ref.check_value_and_gradient(update.loss, method.teacher, lambda w: supervised(w) + ramp * 8 * uda(w) + feedback(w))


@pytest.mark.parametrize("fraction", [0, 5, 9])
def test_teacher(fraction: int) -> None:
    check_teacher(MetaPseudoLabels, fraction)


def check_feedback_teaches(cls: type[MetaPseudoLabels]) -> None:
    """Along the feedback's gradient, labels that helped become more probable and labels that hurt less."""
    signs = set()
    for seed in range(6):
        method = build(cls, student=seed, teacher=seed + 100)
        torch.manual_seed(seed)
        student, update = step(method, 0.5)
        labels = labels_of(student)
        # Whether the labels helped, from the equations.
        old, new = ref.weights(ref.regression(seed)), ref.weights(method.student)
        y = given().labeled.y
        helped = ref.labeled_loss(old, X["weak"], y) > ref.labeled_loss(new, X["weak"], y)
        slopes = torch.autograd.grad(update.log["feedback"], list(method.teacher.parameters()))
        assert any(bool(slope.abs().max() > 1e-6) for slope in slopes), "the feedback has no gradient"
        before = -ref.labeled_loss(ref.weights(method.teacher), U["strong"], labels)
        with torch.no_grad():
            for p, slope in zip(method.teacher.parameters(), slopes, strict=True):
                p.sub_(0.1 * slope)
        after = -ref.labeled_loss(ref.weights(method.teacher), U["strong"], labels)
        assert (after > before) == helped, f"seed {seed}: helped {helped}, log-probability {before:.4f} -> {after:.4f}"
        signs.add(helped)
    if len(signs) < 2:
        pytest.fail("only one sign was tried")


def test_feedback_teaches() -> None:
    check_feedback_teaches(MetaPseudoLabels)


def test_soft_labels_would_teach_nothing() -> None:
    """CE(p, softmax(z)) has the gradient softmax(z) - p in z, and that is 0 for p = softmax(z)."""
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(soft_cross_entropy(z, z.detach().softmax(1)), z)
    torch.testing.assert_close(slope, torch.zeros_like(z), atol=1e-7, rtol=0)


def test_teacher_gets_no_gradient_through_the_weak_view_nor_the_student() -> None:
    ref.check_no_gradient_into(build(MetaPseudoLabels, uda_ramp=0.0), given(), "unlabeled", "weak")
    method = build(MetaPseudoLabels)
    _, update = step(method, 0.1)
    assert not update.log["help"].requires_grad
    slopes = torch.autograd.grad(update.loss, list(method.student.parameters()), allow_unused=True)
    assert all(slope is None for slope in slopes)


def check_waits(cls: type[MetaPseudoLabels]) -> None:
    """Before `student_start` only the teacher learns, without feedback."""
    method = build(cls, student_start=0.3)
    for at, groups in {0: ["teacher"], 2: ["teacher"], 3: ["student", "teacher"]}.items():
        before = ref.weights(method.student)
        updates = ref.run(method, given(), Progress(at, 10))
        assert [update.group for update in updates] == groups
        assert (ref.weights(method.student) == before).all() == (len(groups) == 1)
        if len(groups) == 1:
            assert float(updates[0].log["help"]) == float(updates[0].log["feedback"].detach()) == 0.0


def test_student_waits() -> None:
    check_waits(MetaPseudoLabels)


def test_baseline() -> None:
    """m <- .8 m + .2 h, and the teacher is rewarded with h - m."""
    plain, method = build(MetaPseudoLabels), build(MetaPseudoLabels, baseline_decay=0.8)
    running = 0.0
    for seed in range(4):
        plain.load_state_dict(method.state_dict())
        torch.manual_seed(seed)
        h = float(step(plain, 0.3)[1].log["help"])
        torch.manual_seed(seed)
        update = step(method, 0.3)[1]
        running = 0.8 * running + 0.2 * h
        ref.close(method.baseline, running)
        ref.close(update.log["help"], h - running)


def test_the_student_is_evaluated() -> None:
    method = build(MetaPseudoLabels)
    assert method.predictor() is method.student
    student, teacher = method.groups()["student"], method.groups()["teacher"]
    assert not {id(p) for p in student} & {id(p) for p in teacher}


# --- sabotage --------------------------------------------------------------------------------------------------------


class FlippedSign(MetaPseudoLabels):
    """The official code and kekmodel's port: after - before."""

    def student_loss(self, batch: Batch) -> Tensor:
        return -super().student_loss(batch)


def rewarded(change: Callable[[MetaPseudoLabels, Batch, Update, Update], Tensor]) -> type[MetaPseudoLabels]:
    """A class whose feedback term is `change(method, batch, student's update, teacher's update)`."""

    class Changed(MetaPseudoLabels):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            student: Update | None = None
            for update in super().step(batch, progress):
                if update.group == "student":
                    student = update
                    yield update
                    continue
                assert student is not None
                feedback = change(self, batch, student, update)
                loss = update.loss - update.log["feedback"] + feedback
                yield replace(update, loss=loss, log={**update.log, "feedback": feedback})

    return Changed


def soft(method: MetaPseudoLabels, batch: Batch, student: Update, teacher: Update) -> Tensor:
    """The official code: soft answers against themselves."""
    logits = method.teacher(batch.unlabeled["strong"])
    return teacher.log["help"] * soft_cross_entropy(logits, logits.detach().softmax(1))


def other_labels(method: MetaPseudoLabels, batch: Batch, student: Update, teacher: Update) -> Tensor:
    """The teacher is rewarded for labels that the student never saw."""
    logits = method.teacher(batch.unlabeled["strong"])
    return teacher.log["help"] * F.cross_entropy(logits, logits.argmin(1))


class NoHelp(MetaPseudoLabels):
    """The student is judged by the pseudo-labels' images instead of the labeled ones."""

    def student_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(self.student(batch.unlabeled["weak"][:6]), batch.labeled.y)


class SoftStudent(MetaPseudoLabels):
    """The student learns other labels than it reports."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if update.group == "student":
                target = self.teacher(batch.unlabeled["strong"]).detach().softmax(1)
                loss = soft_cross_entropy(self.student(batch.unlabeled["strong"]), target)
                update = replace(update, loss=loss)
            yield update


class UnsharpenedMask(MetaPseudoLabels):
    """The threshold looks at the weak answer as it is."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if update.group == "teacher":
                weak = self.teacher(batch.unlabeled["weak"]).detach()
                target = (weak / self.uda_temperature).softmax(1)
                mask = (weak.softmax(1).amax(1) >= self.uda_threshold).float()
                uda = soft_cross_entropy(self.teacher(batch.unlabeled["strong"]), target, mask)
                yield replace(update, log={**update.log, "teacher_uda": uda})
            else:
                yield update


class SharpStudent(MetaPseudoLabels):
    """The student learns without label smoothing."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if update.pseudo_labels is not None:
                loss = F.cross_entropy(self.student(batch.unlabeled["strong"]), update.pseudo_labels.labels)
                update = replace(update, loss=loss)
            yield update


class AllUsed(MetaPseudoLabels):
    """Every weak answer is used, confident or not."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.uda_threshold = 0.0
        return super().step(batch, progress)


class Unsharpened(MetaPseudoLabels):
    """Weak answers are targets as they are."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.uda_temperature = 1.0
        return super().step(batch, progress)


class NoRamp(MetaPseudoLabels):
    """Consistency has its full weight from the start."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.uda_ramp = 0.0
        return super().step(batch, progress)


class Impatient(MetaPseudoLabels):
    """The student does not wait."""

    def __init__(self, model: Classifier, second: Classifier, **options: Any) -> None:
        super().__init__(model, second, **{**options, "student_start": 0.0})


@pytest.mark.parametrize("cls", [FlippedSign, NoHelp, SoftStudent])
def test_taylor_finds(cls: type[MetaPseudoLabels]) -> None:
    with pytest.raises(AssertionError, match="no first-order measure"):
        check_taylor(cls)


@pytest.mark.parametrize("cls", [SoftStudent, SharpStudent])
def test_student_check_finds(cls: type[MetaPseudoLabels]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_student(cls)


@pytest.mark.parametrize("change", [soft, other_labels])
def test_teacher_check_finds(change: Callable[..., Tensor]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_teacher(rewarded(change))


@pytest.mark.parametrize("cls", [AllUsed, Unsharpened, UnsharpenedMask, NoRamp])
def test_teacher_check_finds_wrong_uda(cls: type[MetaPseudoLabels]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_teacher(cls)


@pytest.mark.parametrize("cls", [FlippedSign, rewarded(soft), rewarded(other_labels)])
def test_feedback_check_finds(cls: type[MetaPseudoLabels]) -> None:
    with pytest.raises(AssertionError, match=r"seed|no gradient"):
        check_feedback_teaches(cls)


def test_waiting_check_finds_an_impatient_student() -> None:
    with pytest.raises(AssertionError):
        check_waits(Impatient)
