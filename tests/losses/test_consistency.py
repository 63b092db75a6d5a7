from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import kl_consistency, mse_consistency, sharpen, soft_cross_entropy
from tests.losses.losses_reference import check, gradient, normal, numeric_gradient, softmax

LOGITS = normal(5, 4, scale=2.0)
OTHER = normal(5, 4, seed=1, scale=2.0)


def mse_reference(z, q):
    p = softmax(z)
    total = 0.0
    for n in range(len(z)):
        total += sum((p[n, c] - q[n, c]) ** 2 for c in range(z.shape[1])) / z.shape[1]
    return total / len(z)


def kl_reference(z, target_z):
    p, q = softmax(z), softmax(target_z)
    total = 0.0
    for n in range(len(z)):
        total += sum(q[n, c] * (math.log(q[n, c]) - math.log(p[n, c])) for c in range(z.shape[1]))
    return total / len(z)


def sharpen_reference(p, temperature):
    out = np.zeros_like(p)
    for n in range(len(p)):
        powers = [value ** (1 / temperature) for value in p[n]]
        out[n] = [power / sum(powers) for power in powers]
    return out


@pytest.mark.parametrize("rows", [1, 5])
def test_mse_matches_loops(rows):
    target = softmax(OTHER[:rows])
    check(
        lambda z: mse_consistency(z, torch.tensor(target).to(z.dtype)),
        lambda z: mse_reference(z, target),
        LOGITS[:rows],
    )


@pytest.mark.parametrize("rows", [1, 5])
def test_kl_matches_loops(rows):
    check(
        lambda z: kl_consistency(z, torch.tensor(OTHER[:rows]).to(z.dtype)),
        lambda z: kl_reference(z, OTHER[:rows]),
        LOGITS[:rows],
    )


def test_gradient_reaches_a_target_that_is_not_detached():
    logits = torch.tensor(LOGITS)
    through_mse = gradient(lambda q: mse_consistency(logits, F.softmax(q, dim=1)), torch.tensor(OTHER))
    expected = numeric_gradient(lambda q: mse_reference(LOGITS, softmax(q)), OTHER)
    np.testing.assert_allclose(through_mse.numpy(), expected, rtol=1e-5, atol=1e-9)
    through_kl = gradient(lambda q: kl_consistency(logits, q), torch.tensor(OTHER))
    expected = numeric_gradient(lambda q: kl_reference(LOGITS, q), OTHER)
    np.testing.assert_allclose(through_kl.numpy(), expected, rtol=1e-5, atol=1e-9)


def test_equal_predictions_give_zero_loss_and_gradient():
    logits = torch.tensor(LOGITS)
    probs = F.softmax(logits, dim=1)
    assert float(mse_consistency(logits, probs)) == 0.0
    assert gradient(lambda z: mse_consistency(z, probs), logits).abs().max() == 0.0
    assert float(kl_consistency(logits, logits)) == 0.0
    assert gradient(lambda z: kl_consistency(z, logits), logits).abs().max() < 1e-15


@pytest.mark.parametrize("classes", [2, 10])
def test_opposite_one_hots_give_two_over_c(classes):
    logits, target = torch.zeros(3, classes), torch.zeros(3, classes)
    logits[:, 0], target[:, 1] = 1e3, 1.0
    assert float(mse_consistency(logits, target)) == pytest.approx(2 / classes)


def test_kl_is_not_divided_by_the_classes():
    logits, target = torch.tensor(LOGITS), torch.tensor(OTHER)
    log_p, q = F.log_softmax(logits, dim=1), F.softmax(target, dim=1)
    too_small = F.kl_div(log_p, q, reduction="none").mean()
    torch.testing.assert_close(kl_consistency(logits, target), 4 * too_small)


def test_kl_runs_from_target_to_prediction():
    one, other = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert float(kl_consistency(one, other)) == pytest.approx(kl_reference(one.numpy(), other.numpy()), rel=1e-5)
    assert abs(float(kl_consistency(one, other) - kl_consistency(other, one))) > 0.1  # so a swap would be seen


def test_kl_and_cross_entropy_teach_the_same():
    logits, target = torch.tensor(LOGITS), torch.tensor(OTHER)
    with_kl = gradient(lambda z: kl_consistency(z, target), logits)
    with_ce = gradient(lambda z: soft_cross_entropy(z, F.softmax(target, dim=1)), logits)
    torch.testing.assert_close(with_kl, with_ce)
    torch.testing.assert_close(with_kl, (F.softmax(logits, dim=1) - F.softmax(target, dim=1)) / 5)


def test_kl_grows_with_the_square_of_a_small_perturbation():
    logits, direction = torch.tensor(LOGITS), 1e-3 * torch.tensor(OTHER)
    small, large = kl_consistency(logits + direction, logits), kl_consistency(logits + 2 * direction, logits)
    assert float(large / small) == pytest.approx(4.0, rel=1e-2)


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_sharpen_matches_loops_and_softmax_of_scaled_logits(temperature):
    probs = softmax(LOGITS)
    result = sharpen(torch.tensor(probs), temperature)
    np.testing.assert_allclose(result.numpy(), sharpen_reference(probs, temperature), rtol=1e-12)
    torch.testing.assert_close(result, F.softmax(torch.tensor(LOGITS) / temperature, dim=1))
    torch.testing.assert_close(result.sum(1), torch.ones(5, dtype=torch.float64))
    pick = normal(5, 4, seed=2)
    grad = gradient(lambda p: (sharpen(p, temperature) * torch.tensor(pick)).sum(), torch.tensor(probs))
    expected = numeric_gradient(lambda p: float((sharpen_reference(p, temperature) * pick).sum()), probs, 1e-6)
    np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_sharpen_values():
    result = sharpen(torch.tensor([[0.5, 0.3, 0.2]]), 0.5)
    torch.testing.assert_close(result, torch.tensor([[0.6579, 0.2368, 0.1053]]), rtol=0, atol=5e-5)
    probs = torch.tensor(softmax(LOGITS)).float()
    torch.testing.assert_close(sharpen(probs, 1.0), probs)


def test_sharpen_towards_zero_is_the_argmax_without_underflow():
    probs = torch.full((1, 100), 0.0099)
    probs[0, 7] = 1 - 99 * 0.0099  # 0.0199: its 1/T-th power is 0 in float32
    result = sharpen(probs, 1e-3)
    assert torch.equal(result, F.one_hot(torch.tensor([7]), 100).float())
    one_hot = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(sharpen(one_hot, 0.5), one_hot)
    assert torch.isfinite(gradient(lambda p: sharpen(p, 0.5)[0, 0], one_hot)).all()


def test_mistakes_are_named():
    logits = torch.tensor(LOGITS)
    for loss in (mse_consistency, kl_consistency):
        with pytest.raises(SemisupError, match=r"shape of logits \(5, 4\), got \(1, 4\)"):
            loss(logits, logits[:1])
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            sharpen(logits, temperature)
