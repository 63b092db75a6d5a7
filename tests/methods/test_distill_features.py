"""Feature distillation against loops over numbers: value, gradient, the queue, and mistakes that must be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import feature_cosine, feature_mse, queue_distillation
from semisup.methods import Batch, Progress, Update
from semisup.methods.distill_features import DistillFeatures
from semisup.models import Classifier, Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

SHAPE = (1, 12, 12)
Rows = list[list[float]]


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def given(n: int = 6, seed: int = 3) -> Batch:
    return ref.batch(unlabeled={"weak": images(n, seed), "strong": images(n, seed + 1)})


def method(cls: type[DistillFeatures] = DistillFeatures, **options: Any) -> DistillFeatures:
    torch.manual_seed(0)
    teacher = Classifier(SmallCNN(5, in_channels=1), nn.Sequential(), 3)
    return cls(Encoder(SmallCNN(3, in_channels=1)), teacher, SHAPE, **options).train()


# --- the losses, number by number ------------------------------------------------------------------------------------


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_cosine(student: Rows, teacher: Rows) -> float:
    return sum(1 - cosine(s, t) for s, t in zip(student, teacher, strict=True)) / len(student)


def slow_mse(student: Rows, teacher: Rows) -> float:
    total = sum((a - b) ** 2 for s, t in zip(student, teacher, strict=True) for a, b in zip(s, t, strict=True))
    return total / len(student) / len(student[0])


def slow_queue(student: Rows, teacher: Rows, queue: Rows, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        powers = [[math.exp(cosine(row, q) / temperature) for q in queue] for row in (s, t)]
        p, wanted = ([x / sum(power) for x in power] for power in powers)
        total -= sum(w * math.log(x) for w, x in zip(wanted, p, strict=True))
    return total / len(student)


QUEUE = torch.randn(5, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Rows, Rows], float]]] = {
    "cosine": (feature_cosine, slow_cosine),
    "mse": (feature_mse, slow_mse),
    "queue": (
        lambda s, t: queue_distillation(s, t, QUEUE, 0.3),
        lambda s, t: slow_queue(s, t, QUEUE.tolist(), 0.3),
    ),
}


def slow_gradient(f: Callable[[Rows], float], at: Tensor, step: float = 1e-5) -> np.ndarray:
    found = np.zeros(at.shape)
    for place in np.ndindex(*at.shape):
        values = []
        for sign in (1, -1):
            moved = at.detach().double().clone()
            moved[place] += sign * step
            values.append(f(moved.tolist()))
        found[place] = (values[0] - values[1]) / (2 * step)
    return found


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_slow_one_in_value_and_gradient(name: str, n: int) -> None:
    draw = torch.Generator().manual_seed(1)
    student = torch.randn(n, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(n, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    fast, slow = LOSSES[name]
    loss = fast(student, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(slow(student.tolist(), teacher.tolist()), rel=1e-5)
    np.testing.assert_allclose(
        student.grad, slow_gradient(lambda rows: slow(rows, teacher.tolist()), student), rtol=1e-3, atol=1e-6
    )
    assert teacher.grad is None


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    assert float(feature_cosine(2 * rows, rows)) == pytest.approx(0, abs=1e-6)
    assert float(feature_mse(rows, rows)) == 0
    student = rows.clone().requires_grad_()
    queue_distillation(student, rows, QUEUE.float(), 0.1).backward()
    assert student.grad is not None and float(student.grad.abs().max()) < 1e-6


def test_empty_places_of_the_queue_count_nothing() -> None:
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    filled = torch.tensor([True, True, False, False, False])
    some = queue_distillation(rows[0], rows[1], QUEUE.float(), 0.2, filled)
    assert float(some) == pytest.approx(float(queue_distillation(rows[0], rows[1], QUEUE[:2].float(), 0.2)), rel=1e-6)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(SemisupError, match="must both be"):
        feature_mse(torch.zeros(2, 3), torch.zeros(2, 4))


# --- the method ------------------------------------------------------------------------------------------------------


def check_equation(cls: type[DistillFeatures], form: str, of: str = "pooled") -> None:
    """The slow loss between the projector's rows and the teacher's, in value and in the projector's gradient."""
    one, batch = method(cls, form=form, of=of, temperature=0.3, memory=400), given(2)
    loss = ref.first(one, batch).loss
    (gradient,) = torch.autograd.grad(loss, one.projector[-1].bias, retain_graph=True)
    seen, wanted = slow_rows(one, batch.unlabeled["weak"], of)
    weight, bias = (tensor.detach().double() for tensor in (one.projector[-1].weight, one.projector[-1].bias))

    def slow(bias: list[float]) -> float:
        projected = (seen @ weight.T + torch.tensor(bias, dtype=torch.float64)).tolist()
        if form == "queue":  # at the first step it has the batch alone
            return slow_queue(projected, wanted.tolist(), wanted.tolist(), 0.3)
        return {"cosine": slow_cosine, "mse": slow_mse}[form](projected, wanted.tolist())

    assert float(loss.detach()) == pytest.approx(slow(bias.tolist()), rel=1e-4)
    numeric = slow_gradient(lambda rows: slow(rows), bias)  # type: ignore[arg-type]
    np.testing.assert_allclose(gradient, numeric, rtol=2e-2, atol=1e-5)


def slow_rows(one: DistillFeatures, x: Tensor, of: str) -> tuple[Tensor, Tensor]:
    student, teacher = one.encoder.backbone, one.teacher.backbone
    with torch.no_grad():
        if of == "pooled":
            return student(x).double(), teacher(x).double()  # type: ignore[operator]
        maps = [network.maps(x)[-1] for network in (student, teacher)]  # type: ignore[operator]
        return tuple(  # type: ignore[return-value]
            torch.stack(
                [m[n, :, i, j] for n in range(len(x)) for i in range(m.shape[2]) for j in range(m.shape[3])]
            ).double()
            for m in maps
        )


@pytest.mark.parametrize(
    ("form", "of"), [("cosine", "pooled"), ("mse", "pooled"), ("queue", "pooled"), ("mse", "tokens")]
)
def test_equation(form: str, of: str) -> None:
    check_equation(DistillFeatures, form, of)


def test_the_queue_remembers_the_teachers_last_embeddings() -> None:
    one = method(form="queue", memory=10)
    batches = [given(6, 10), given(6, 20)]
    for batch in batches:
        ref.first(one, batch)
    with torch.no_grad():
        rows = [one.teacher.features(batch.unlabeled["weak"]) for batch in batches]  # type: ignore[operator]
    unit = torch.nn.functional.normalize(torch.cat(rows), dim=1)
    assert torch.allclose(one.queue[:2], unit[10:12], atol=1e-6)  # the oldest two were overwritten
    assert torch.allclose(one.queue[2:], unit[2:10], atol=1e-6)


def test_a_queue_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(SemisupError, match=r"method\.memory"):
        ref.first(method(form="queue", memory=4), given(6))


def check_teacher_is_frozen(cls: type[DistillFeatures]) -> None:
    one = method(cls)
    before = {name: value.clone() for name, value in one.teacher.state_dict().items()}
    for _ in range(2):
        ref.run(one, given())
    assert not any(module.training for module in one.teacher.modules()), "the teacher is in train mode"
    assert all(torch.equal(before[name], value) for name, value in one.teacher.state_dict().items())
    assert not {id(p) for p in one.teacher.parameters()} & {id(p) for p in one.groups()["main"]}


def test_teacher_is_frozen() -> None:
    check_teacher_is_frozen(DistillFeatures)


def test_a_student_learns_what_its_teacher_sees() -> None:
    one = method(hidden=16)
    losses = [float(ref.run(one, given(), lr=0.5)[0].loss.detach()) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


class TrainModeTeacher(DistillFeatures):
    """BatchNorm of the teacher follows the batches."""

    def train(self, mode: bool = True) -> TrainModeTeacher:
        nn.Module.train(self, mode)
        return self


class OtherImages(DistillFeatures):
    """The teacher is asked about another view than the student."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            wanted = self._rows(self._seen(self.teacher, batch.unlabeled["strong"]))
        given = self.projector(self._rows(self._seen(self.encoder, batch.unlabeled["weak"])))
        loss = self._loss(given, wanted)
        yield Update(loss, log={"distillation": loss})


class Swapped(DistillFeatures):
    """The teacher is to match the student."""

    def _loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        return super()._loss(wanted, given) + 0 * given.sum()


def test_frozen_check_finds_a_teacher_in_train_mode() -> None:
    with pytest.raises(AssertionError, match="train mode"):
        check_teacher_is_frozen(TrainModeTeacher)


@pytest.mark.parametrize("cls", [OtherImages, Swapped])
def test_equation_finds(cls: type[DistillFeatures]) -> None:
    with pytest.raises(AssertionError):
        check_equation(cls, "cosine")
