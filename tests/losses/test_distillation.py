from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import hinton_kd, kl_consistency, soft_target_distillation
from tests.losses.losses_reference import check, gradient, normal, softmax

STUDENT = normal(5, 4, scale=2.0)
TEACHER = normal(5, 4, seed=1, scale=2.0)


def kd_reference(z, teacher, temperature):
    p, q = softmax(z, temperature), softmax(teacher, temperature)
    total = 0.0
    for n in range(len(z)):
        total += sum(q[n, c] * math.log(q[n, c] / p[n, c]) for c in range(z.shape[1]))
    return temperature**2 * total / len(z)


def soft_reference(z, teacher, temperature):
    p, q = softmax(z, temperature), softmax(teacher, temperature)
    return sum(-q[n, c] * math.log(p[n, c]) for n in range(len(z)) for c in range(z.shape[1])) / len(z)


@pytest.mark.parametrize(("loss", "reference"), [(hinton_kd, kd_reference), (soft_target_distillation, soft_reference)])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_matches_loops(loss, reference, rows, temperature):
    teacher = TEACHER[:rows]
    check(
        lambda z: loss(z, torch.tensor(teacher).to(z.dtype), temperature),
        lambda z: reference(z, teacher, temperature),
        STUDENT[:rows],
    )


def test_agreement_is_zero_for_hinton_and_the_teachers_entropy_for_simclr():
    logits = torch.tensor(TEACHER)
    assert float(hinton_kd(logits, logits, 4.0)) == 0.0
    assert gradient(lambda z: hinton_kd(z, logits, 4.0), logits).abs().max() < 1e-14
    p = F.softmax(logits / 0.5, dim=1)
    entropy = -(p * p.log()).sum(1).mean()
    assert float(entropy) > 0.1
    torch.testing.assert_close(soft_target_distillation(logits, logits, 0.5), entropy)
    assert gradient(lambda z: soft_target_distillation(z, logits, 0.5), logits).abs().max() < 1e-14


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_gradients_by_hand(temperature):
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    difference = F.softmax(student / temperature, dim=1) - F.softmax(teacher / temperature, dim=1)
    hinton = gradient(lambda z: hinton_kd(z, teacher, temperature), student)
    torch.testing.assert_close(hinton, temperature * difference / 5)
    simclr = gradient(lambda z: soft_target_distillation(z, teacher, temperature), student)
    torch.testing.assert_close(simclr, difference / (temperature * 5))
    torch.testing.assert_close(hinton, temperature**2 * simclr)


def test_high_temperature_matches_centered_logits():
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    centered = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    grad = gradient(lambda z: hinton_kd(z, teacher, 1e4), student)
    torch.testing.assert_close(grad, centered / (4 * 5), rtol=1e-2, atol=1e-4)


def test_temperature_one_is_the_plain_kl():
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    torch.testing.assert_close(hinton_kd(student, teacher, 1.0), kl_consistency(student, teacher))


def test_low_temperature_is_cross_entropy_with_the_teachers_argmax():
    student, teacher = torch.tensor(STUDENT).float(), torch.tensor(TEACHER).float()
    value = soft_target_distillation(student, teacher, 1e-3)
    torch.testing.assert_close(value, F.cross_entropy(student / 1e-3, teacher.argmax(1)))
    assert torch.isfinite(gradient(lambda z: hinton_kd(z, teacher, 1e-3), student)).all()


@pytest.mark.parametrize("loss", [hinton_kd, soft_target_distillation])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = torch.tensor(STUDENT, requires_grad=True), torch.tensor(TEACHER, requires_grad=True)
    loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("loss", [hinton_kd, soft_target_distillation])
def test_swapping_student_and_teacher_would_be_seen(loss):
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    assert abs(float(loss(student, teacher, 2.0) - loss(teacher, student, 2.0))) > 5e-3


@pytest.mark.parametrize("loss", [hinton_kd, soft_target_distillation])
def test_mistakes_are_named(loss):
    student = torch.tensor(STUDENT)
    with pytest.raises(SemisupError, match=r"must have the same shape, got \(5, 4\) and \(5, 3\)"):
        loss(student, student[:, :3], 1.0)
    for temperature in (0.0, -2.0, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            loss(student, student, temperature)
