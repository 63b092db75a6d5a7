"""Negative cosine, Barlow Twins and the terms of VICReg against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import barlow_twins, covariance_penalty, negative_cosine, variance_hinge
from tests.losses.losses_reference import check, gradient, normal


def mean(values):
    return sum(values) / len(values)


def negative_cosine_loops(p, z):
    total = 0.0
    for a, b in zip(p, z, strict=True):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        total -= dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return total / len(p)


def barlow_loops(first, second, weight):
    n, d = first.shape

    def standard(z, j):
        column = [z[i, j] for i in range(n)]
        biased = sum((x - mean(column)) ** 2 for x in column) / n
        return [(x - mean(column)) / math.sqrt(biased + 1e-5) for x in column]

    total = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(x * y for x, y in zip(standard(first, i), standard(second, j), strict=True)) / n
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def hinge_loops(z):
    terms = []
    for column in z.T:
        unbiased = sum((x - mean(column)) ** 2 for x in column) / (len(column) - 1)
        terms.append(max(0.0, 1 - math.sqrt(unbiased + 1e-4)))
    return mean(terms)


def covariance_loops(z):
    n, d = z.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                pairs = zip(z[:, i] - mean(z[:, i]), z[:, j] - mean(z[:, j]), strict=True)
                total += (sum(x * y for x, y in pairs) / (n - 1)) ** 2
    return total / d


def fixed(x):
    """A tensor of the dtype that is asked for: `other(z)`."""
    return lambda z: torch.tensor(x).to(z.dtype)


@pytest.mark.parametrize("n", [1, 4])
def test_negative_cosine_matches_loops(n):
    p, z = normal(n, 3, scale=2.0), normal(n, 3, seed=1)
    check(lambda x: negative_cosine(x, fixed(z)(x)), lambda x: negative_cosine_loops(x, z), p)
    check(lambda x: negative_cosine(fixed(p)(x), x), lambda x: negative_cosine_loops(p, x), z)


@pytest.mark.parametrize("weight", [0.0, 0.0051, 2.0])
@pytest.mark.parametrize("n", [2, 5])
def test_barlow_twins_matches_loops(n, weight):
    a, b = normal(n, 3, scale=2.0), normal(n, 3, seed=1) + 5
    check(lambda x: barlow_twins(x, fixed(b)(x), weight), lambda x: barlow_loops(x, b, weight), a)
    check(lambda x: barlow_twins(fixed(a)(x), x, weight), lambda x: barlow_loops(a, x, weight), b)


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_variance_hinge_and_covariance_match_loops(n, scale):
    z = normal(n, 4, scale=scale) + 3
    check(variance_hinge, hinge_loops, z)
    check(covariance_penalty, covariance_loops, z)


def test_negative_cosine_by_hand():
    eye = torch.eye(4)
    assert float(negative_cosine(eye, eye)) == pytest.approx(-1)
    assert float(negative_cosine(eye, -eye)) == pytest.approx(1)
    assert float(negative_cosine(eye, eye.roll(1, 0))) == pytest.approx(0)
    z, p = torch.tensor(normal(5, 4)), torch.tensor(normal(5, 4, seed=1))
    torch.testing.assert_close(negative_cosine(3 * z, p / 7), negative_cosine(z, p))
    torch.testing.assert_close(negative_cosine(z, p), negative_cosine(p, z))
    # BYOL, eq. 2: the squared distance of unit vectors.
    unit = [x / x.norm(dim=1, keepdim=True) for x in (z, p)]
    torch.testing.assert_close(2 + 2 * negative_cosine(z, p), (unit[0] - unit[1]).square().sum(1).mean())


def whitened(n: int, d: int) -> torch.Tensor:
    """(n, d) whose features have mean 0, biased variance 1 and no correlation."""
    x = normal(n, d)
    q, _ = np.linalg.qr(np.column_stack([np.ones(n), x]))
    return torch.tensor(q[:, 1:] * math.sqrt(n))


def test_barlow_twins_by_hand():
    """methods.md 2.8. The 1e-5 of BatchNorm leaves the fourth digit or less."""
    z = whitened(16, 5)
    assert float(barlow_twins(z, z, 1.0)) == pytest.approx(0, abs=1e-8)
    assert float(barlow_twins(z, -z)) == pytest.approx(4 * 5, rel=1e-4)
    copies = z[:, :1].repeat(1, 5)
    assert float(barlow_twins(copies, copies, 1.0)) == pytest.approx(5 * 4, rel=1e-4)
    assert float(barlow_twins(copies, copies, 0.0)) == pytest.approx(0, abs=1e-8)


def test_an_unbiased_standard_deviation_would_leave_a_residue():
    """D / N^2 on the diagonal: the check above would find it."""
    z = whitened(16, 5)
    unbiased = z / z.std(0)
    correlation = unbiased.T @ unbiased / 16
    assert float((1 - correlation.diagonal()).square().sum()) == pytest.approx(5 / 16**2)
    assert 5 / 16**2 > 1e-8


def test_barlow_twins_does_not_see_scale_shift_or_order():
    a, b = torch.tensor(normal(8, 3, scale=4.0)), torch.tensor(normal(8, 3, seed=1, scale=4.0))
    value = barlow_twins(a, b)
    order = torch.tensor([4, 0, 7, 1, 2, 6, 3, 5])
    torch.testing.assert_close(barlow_twins(a[order], b[order]), value)
    torch.testing.assert_close(barlow_twins(3 * a + 1, b - 5), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(barlow_twins(a, b), barlow_twins(b, a))
    assert abs(float(barlow_twins(a, b[order]) - value)) > 1e-2


def test_terms_of_vicreg_by_hand():
    z = whitened(16, 5)
    assert float(covariance_penalty(z)) == pytest.approx(0, abs=1e-12)
    assert float(variance_hinge(2 * z)) == 0
    assert float(variance_hinge(torch.ones(4, 3))) == pytest.approx(0.99)  # collapsed: 1 - sqrt(1e-4)
    # Unbiased: 16/15 is the variance of every feature, and the covariance of all pairs of copies.
    copies = z[:, :1].repeat(1, 5)
    assert float(covariance_penalty(copies)) == pytest.approx(5 * 4 * (16 / 15) ** 2 / 5)
    assert float(variance_hinge(copies / 2)) == pytest.approx(1 - math.sqrt(16 / 15 / 4 + 1e-4))
    shifted = torch.tensor(normal(6, 4))
    for loss in (variance_hinge, covariance_penalty):
        torch.testing.assert_close(loss(shifted + 7), loss(shifted))
        torch.testing.assert_close(loss(shifted.flip(0)), loss(shifted))
    torch.testing.assert_close(covariance_penalty(2 * shifted), 16 * covariance_penalty(shifted))


def test_collapsed_views_are_finite():
    same = torch.ones(6, 4)
    assert float(barlow_twins(same, same)) == 4
    for loss in (lambda z: barlow_twins(z, same), variance_hinge, covariance_penalty):
        assert torch.equal(gradient(loss, same), torch.zeros(6, 4))
    zero = torch.zeros(3, 4)
    assert float(negative_cosine(zero, same[:3])) == 0
    assert bool(gradient(lambda z: negative_cosine(z, same[:3]), zero).isfinite().all())
    one = torch.tensor(normal(1, 4))
    assert float(barlow_twins(one, one)) == 4
    assert torch.equal(gradient(lambda z: barlow_twins(z, one), one), torch.zeros_like(one))


@pytest.mark.parametrize("loss", [barlow_twins, lambda a, _: covariance_penalty(a)])
def test_autocast_does_not_round_the_products(loss):
    a, b = torch.tensor(normal(32, 16)).float(), torch.tensor(normal(32, 16, seed=1)).float()
    outside = loss(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a.T @ b).dtype == torch.bfloat16  # what would happen
        inside = loss(a, b)
    assert torch.equal(inside, outside)


def test_mistakes_are_named():
    z = torch.ones(4, 2)
    for a, b in ((z, torch.ones(3, 2)), (torch.ones(4), torch.ones(4)), (torch.ones(0, 2), torch.ones(0, 2))):
        for loss in (negative_cosine, barlow_twins):
            with pytest.raises(SemisupError, match=r"the two views must both be \(N, D\) with N >= 1"):
                loss(a, b)
    for weight in (-1.0, math.nan):
        with pytest.raises(SemisupError, match="redundancy_weight must be at least 0"):
            barlow_twins(z, z, weight)
    for wrong in (torch.ones(1, 3), torch.ones(4)):
        for loss in (variance_hinge, covariance_penalty):
            with pytest.raises(SemisupError, match=r"z must be \(N, D\) with N >= 2, got shape"):
                loss(wrong)
