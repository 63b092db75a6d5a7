from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate import LinearProbe, fit_probe, probe


def blobs(n: int, seed: int, spread: float = 1.0, classes: int = 3, width: int = 8) -> tuple[Tensor, Tensor]:
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return centers[y] + spread * torch.randn(n, width, generator=generator), y


def accuracy(found: LinearProbe, x: Tensor, y: Tensor) -> float:
    return float((found.logits(x, 3).argmax(1) == y).double().mean())


def test_separable_classes_are_read_and_noise_is_not() -> None:
    found = fit_probe(*blobs(300, 0, 0.1), seed=0)
    assert accuracy(found, *blobs(100, 1, 0.1)) == 1.0
    noise, y = torch.randn(600, 8, generator=torch.Generator().manual_seed(2)), torch.arange(600) % 3
    assert 0.2 < accuracy(fit_probe(noise[:300], y[:300], seed=0), noise[300:], y[300:]) < 0.47


def test_the_scale_of_a_feature_does_not_matter() -> None:
    train, test = blobs(200, 0, 2.0), blobs(100, 1, 2.0)
    scale = torch.logspace(-3, 3, 8)
    first, scaled = fit_probe(*train, seed=3), fit_probe(train[0] * scale, train[1], seed=3)
    assert accuracy(first, *test) == accuracy(scaled, test[0] * scale, test[1])


def test_every_prefix_of_a_stratified_order_has_the_class_frequencies_and_every_class() -> None:
    y = np.array([0] * 900 + [1] * 97 + [2] * 3)
    order = probe._stratified_order(y, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, np.sort(order))
    counts = np.bincount(y[order[:100]], minlength=3)
    assert abs(counts[0] - 90) <= 2
    assert abs(counts[1] - 9.7) <= 2
    assert counts[2] >= 1
    assert set(y[order[:3]]) == {0, 1, 2}


def test_the_folds_depend_on_the_seed() -> None:
    y = np.arange(100) % 2
    first, again, other = (probe._stratified_order(y, np.random.default_rng(seed))[:20] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_constant_feature_as_after_collapse_is_no_error() -> None:
    x, y = torch.ones(60, 8), torch.arange(60) % 3
    assert accuracy(fit_probe(x, y, seed=0), x, y) == pytest.approx(1 / 3)


def test_stopping_early_is_told_and_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_ITER", 2)
    assert fit_probe(*blobs(200, 0, 2.0), seed=0).converged is False


def cross_validated(x: Tensor, y: Tensor, strength: float, folds: int, seed: int) -> tuple[float, float]:
    """Log loss and accuracy of every sample, by a model that has not seen its fold; sample by sample."""
    parts = np.array_split(probe._stratified_order(y.numpy(), np.random.default_rng(seed)), folds)
    losses, hits = [], []
    for part in parts:
        rest = sorted(set(range(len(y))) - set(part.tolist()))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        model.fit(x[rest].double().numpy(), y[rest].numpy())
        for i in part:
            (probs,) = model.predict_proba(x[i : i + 1].double().numpy())
            losses.append(-math.log(probs[list(model.classes_).index(y[i])]))
            hits.append(model.classes_[probs.argmax()] == int(y[i]))
    return float(np.mean(losses)), float(np.mean(hits))


def test_more_features_than_samples_have_the_regression_of_all_features() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(40) % 4
    x = 5 + 3 * (rng.normal(size=(4, 300))[y] * 0.2 + rng.normal(size=(40, 300)))
    found = fit_probe(torch.from_numpy(x), torch.from_numpy(y), seed=0)
    exact = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, tol=1e-10, max_iter=10_000)).fit(x, y)
    others = 5 + 3 * rng.normal(size=(50, 300))
    np.testing.assert_allclose(found.logits(torch.from_numpy(others), 4).exp(), exact.predict_proba(others), atol=5e-3)
    np.testing.assert_allclose(found.model[-1].coef_, exact[-1].coef_, atol=1e-3)


@pytest.mark.parametrize(
    ("n", "spread", "most", "folds"),
    [(90, 0.5, 5, 5), (90, 3.0, 5, 5), (90, 3.0, 2, 2), (12, 2.0, 5, 4), (6, 0.5, 5, 2)],
)
def test_the_strength_has_the_least_log_loss_of_cross_validation(n: int, spread: float, most: int, folds: int) -> None:
    x, y = blobs(n, 0, spread)
    y = y * 2  # classes 0, 2 and 4
    found = fit_probe(x, y, seed=3, folds=most)
    results = [cross_validated(x, y, c, folds, 3) for c in probe.STRENGTHS]
    best = int(np.argmin([loss for loss, _ in results]))
    assert found.strength == probe.STRENGTHS[best]
    assert found.folds == folds
    assert found.cv_accuracy == pytest.approx(results[best][1])
    assert found.converged


def test_noise_is_regularized_more_than_what_can_be_read() -> None:
    easy = fit_probe(*blobs(60, 0, 0.2), seed=0)
    noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(2))
    assert fit_probe(noise, torch.arange(60) % 3, seed=0).strength < easy.strength


def test_folds_have_every_class() -> None:
    for n, folds in ((40, 4), (250, 5), (603, 5)):
        y = np.random.default_rng(0).permutation(np.arange(n) % 10)
        parts = np.array_split(probe._stratified_order(y, np.random.default_rng(1)), folds)
        assert sorted(np.concatenate(parts)) == list(range(n))
        assert all(set(y[part]) == set(range(10)) for part in parts)


def test_logits_are_log_probabilities_with_room_for_classes_without_labels() -> None:
    x, y = blobs(60, 0)
    q, _ = blobs(20, 1)
    found = fit_probe(x, y * 2, seed=0)
    logits = found.logits(q, 6)
    assert logits.shape == (20, 6)
    probs = logits.softmax(1)
    torch.testing.assert_close(logits.logsumexp(1), torch.zeros(20, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(probs[:, [1, 3, 5]].max()) < 1e-11
    np.testing.assert_allclose(probs[:, [0, 2, 4]], found.model.predict_proba(q.double().numpy()), atol=1e-9)
    two = fit_probe(x[y < 2], y[y < 2], seed=0)  # scikit-learn treats two classes in a way of its own
    np.testing.assert_allclose(two.logits(q, 2).exp(), two.model.predict_proba(q.double().numpy()), atol=1e-9)


def test_one_label_of_a_class_leaves_nothing_to_validate_with() -> None:
    x, y = blobs(7, 0, 0.1)
    found = fit_probe(x[[0, 1, 2, 3]], y[[0, 1, 2, 3]], seed=0)
    assert (found.strength, found.folds, found.cv_accuracy) == (1.0, 0, None)
    assert found.logits(x, 3).argmax(1).tolist() == y.tolist()


def test_the_same_seed_gives_the_same_probe_and_the_order_of_the_labels_none() -> None:
    x, y = blobs(60, 0, 2.0)
    q, _ = blobs(20, 1)
    first, again = fit_probe(x, y, seed=0), fit_probe(x, y, seed=0)
    assert torch.equal(first.logits(q, 3), again.logits(q, 3))
    # At equal strength: the folds of shuffled samples are others.
    strength = first.strength
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    shuffled = next(p for p in (fit_probe(x[order], y[order], seed=s) for s in range(9)) if p.strength == strength)
    torch.testing.assert_close(shuffled.logits(q, 3), first.logits(q, 3), atol=1e-2, rtol=1e-2)


def test_mistakes_of_a_probe_are_named() -> None:
    x, y = blobs(30, 0)
    with pytest.raises(SemisupError, match="at least two classes"):
        fit_probe(x, torch.zeros_like(y), seed=0)
    with pytest.raises(SemisupError, match=r"^labels must not be negative"):
        fit_probe(x, torch.full_like(y, -1), seed=0)
    with pytest.raises(SemisupError, match=r"features must be \(N, D\) with N >= 1 and labels \(N,\)"):
        fit_probe(x, y[:29], seed=0)
    with pytest.raises(SemisupError, match="features must be finite"):
        fit_probe(torch.full_like(x, math.nan), y, seed=0)
    found = fit_probe(x, y, seed=0)
    with pytest.raises(SemisupError, match=r"features must be \(M, 8\), got shape \(30, 7\)"):
        found.logits(x[:, :7], 3)
    with pytest.raises(SemisupError, match="features must be finite"):
        found.logits(torch.full_like(x, math.inf), 3)
