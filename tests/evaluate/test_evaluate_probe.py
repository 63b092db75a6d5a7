from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate import linear_probe, probe


def blobs(n: int, seed: int, spread: float = 1.0, classes: int = 3, width: int = 8) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return centres[y] + spread * torch.randn(n, width, generator=generator), y


def test_separable_classes_are_read_and_noise_is_not():
    result = linear_probe(*blobs(300, 0, 0.1), *blobs(100, 1, 0.1), seed=0)
    assert result["accuracy"] == 1.0
    assert result["C"] in probe.STRENGTHS
    assert (result["train_samples"], result["converged"]) == (300, True)
    noise, y = torch.randn(600, 8, generator=torch.Generator().manual_seed(2)), torch.arange(600) % 3
    assert 0.2 < linear_probe(noise[:300], y[:300], noise[300:], y[300:], seed=0)["accuracy"] < 0.47


def test_same_seed_same_result_and_scale_of_a_feature_does_not_matter():
    train, test = blobs(200, 0, 2.0), blobs(100, 1, 2.0)
    first = linear_probe(*train, *test, seed=3)
    assert first == linear_probe(*train, *test, seed=3)
    scale = torch.logspace(-3, 3, 8)
    assert linear_probe(train[0] * scale, train[1], test[0] * scale, test[1], seed=3) == first


def test_strength_is_chosen_without_the_test_set():
    train, test = blobs(200, 0, 2.0), blobs(100, 1, 2.0)
    shuffled = test[1][torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert linear_probe(*train, *test, seed=0)["C"] == linear_probe(*train, test[0], shuffled, seed=0)["C"]


def test_cap_keeps_class_frequencies_and_rare_classes():
    y = np.array([0] * 900 + [1] * 97 + [2] * 3)
    order = probe._stratified_order(y, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, np.sort(order))
    counts = np.bincount(y[order[:100]], minlength=3)
    assert abs(counts[0] - 90) <= 2
    assert abs(counts[1] - 9.7) <= 2
    assert counts[2] >= 1
    assert set(y[order[:3]]) == {0, 1, 2}
    result = linear_probe(*blobs(500, 0), *blobs(50, 1), seed=0, max_train=60)
    assert result["train_samples"] == 60


def test_the_subsample_depends_on_the_seed():
    y = np.arange(100) % 2
    first, again, other = (probe._stratified_order(y, np.random.default_rng(seed))[:20] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_few_labels_skip_the_search():
    result = linear_probe(*blobs(6, 0, 0.1), *blobs(30, 1, 0.1), seed=0)
    assert (result["C"], result["accuracy"]) == (1.0, 1.0)


def test_a_constant_feature_as_after_collapse_is_no_error():
    x, y = torch.ones(60, 8), torch.arange(60) % 3
    assert linear_probe(x, y, x, y, seed=0)["accuracy"] == pytest.approx(1 / 3)


def test_stopping_early_is_told_and_does_not_warn(monkeypatch):
    monkeypatch.setattr(probe, "MAX_ITER", 2)
    assert linear_probe(*blobs(200, 0, 2.0), *blobs(50, 1, 2.0), seed=0)["converged"] is False


def test_mistakes_are_named():
    x, y = blobs(30, 0)
    with pytest.raises(SemisupError, match=r"train_features must be \(N, D\) with N >= 1 and train_labels \(N,\)"):
        linear_probe(x, y[:29], x, y, seed=0)
    with pytest.raises(SemisupError, match="test_features must be"):
        linear_probe(x, y, x[:0], y[:0], seed=0)
    with pytest.raises(SemisupError, match="equally wide, got 8 and 7"):
        linear_probe(x, y, x[:, :7], y, seed=0)
    with pytest.raises(SemisupError, match="at least two classes"):
        linear_probe(x, torch.zeros_like(y), x, y, seed=0)
    with pytest.raises(SemisupError, match="train_labels must not be negative"):
        linear_probe(x, torch.full_like(y, -1), x, y, seed=0)
    with pytest.raises(SemisupError, match="max_train must be at least 15 for 3 classes"):
        linear_probe(x, y, x, y, seed=0, max_train=10)
    x[0, 0] = math.nan
    with pytest.raises(SemisupError, match="train_features must be finite"):
        linear_probe(x, y, x, y, seed=0)
