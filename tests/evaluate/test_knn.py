from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate import knn, knn_accuracy, knn_predict


def sample(bank: int = 40, queries: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (bank,), generator=generator)
    return torch.randn(bank, 6, generator=generator), labels, torch.randn(queries, 6, generator=generator)


def reference(features, labels, queries, classes, k, temperature):
    scores = np.zeros((len(queries), classes))
    for m, query in enumerate(queries.double().numpy()):
        cosines = [
            float(query @ row) / (np.linalg.norm(query) * np.linalg.norm(row)) for row in features.double().numpy()
        ]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        for i in nearest:
            scores[m, labels[i]] += math.exp((cosines[i] - max(cosines)) / temperature)
    return scores


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_matches_loops(k, temperature, chunk):
    features, labels, queries = sample()
    result = knn_predict(features, labels, queries, num_classes=4, k=k, temperature=temperature, chunk=chunk)
    np.testing.assert_allclose(result.numpy(), reference(features, labels, queries, 4, k, temperature), atol=1e-4)


def test_the_bank_knows_itself():
    features, labels, _ = sample()
    assert knn_accuracy(features, labels, features, labels, num_classes=3, k=1) == 1.0


def test_scaling_a_feature_changes_nothing():
    features, labels, queries = sample()
    scaled = features * torch.linspace(0.1, 10, 40).unsqueeze(1)
    torch.testing.assert_close(
        knn_predict(scaled, labels, queries * 5, num_classes=3, k=7),
        knn_predict(features, labels, queries, num_classes=3, k=7),
    )


def test_infinite_temperature_counts_classes_and_k_is_cut_to_the_bank():
    features, labels, queries = sample()
    scores = knn_predict(features, labels, queries, num_classes=3, k=200, temperature=1e9)
    counts = torch.bincount(labels, minlength=3).float()
    torch.testing.assert_close(scores, counts.expand(len(queries), 3))


def test_tiny_temperature_does_not_overflow_and_means_the_nearest():
    features, labels, queries = sample()
    scores = knn_predict(features, labels, queries, num_classes=3, k=20, temperature=1e-4)
    assert torch.isfinite(scores).all()
    nearest = knn_predict(features, labels, queries, num_classes=3, k=1)
    assert torch.equal(scores.argmax(1), nearest.argmax(1))


def test_autocast_and_half_features():
    features, labels, queries = sample()
    outside = knn_predict(features, labels, queries, num_classes=3, k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn_predict(features, labels, queries, num_classes=3, k=5), outside)
    assert knn_predict(features.half(), labels, queries.half(), num_classes=3, k=5).dtype == torch.float32


def test_accuracy_counts_right_predictions():
    features, labels = torch.eye(2), torch.tensor([0, 1])
    queries = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2], [0.3, 1.0]])
    assert knn_accuracy(features, labels, queries, torch.tensor([0, 1, 1, 1]), num_classes=2, k=1) == 0.75


def test_mistakes_are_named():
    features, labels, queries = sample()
    with pytest.raises(SemisupError, match=r"got shapes \(40, 6\) and \(11, 5\)"):
        knn_predict(features, labels, queries[:, :5], num_classes=3)
    with pytest.raises(SemisupError, match=r"features must be \(B, D\) with B >= 1"):
        knn_predict(features[:0], labels[:0], queries, num_classes=3)
    with pytest.raises(SemisupError, match=r"labels must have shape \(40,\), got \(39,\)"):
        knn_predict(features, labels[1:], queries, num_classes=3)
    with pytest.raises(SemisupError, match=r"labels must lie in \[0, 3\), got values from -1 to"):
        knn_predict(features, torch.cat([labels[1:], torch.tensor([-1])]), queries, num_classes=3)
    for bad in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(SemisupError, match="k must be at least 1 and temperature positive"):
            knn_predict(features, labels, queries, num_classes=3, **bad)
    with pytest.raises(SemisupError, match="query_labels"):
        knn_accuracy(features, labels, queries, labels, num_classes=3)


@pytest.mark.parametrize("similarities", [1, 40, 100])
def test_no_more_similarities_are_in_memory_than_allowed(similarities, monkeypatch):
    features, labels, queries = sample()
    expected = knn_predict(features, labels, queries, num_classes=3, k=7)
    monkeypatch.setattr(knn, "SIMILARITIES", similarities)
    sizes = []
    topk = Tensor.topk

    def watched(self, *args, **kwargs):
        sizes.append(self.numel())
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "topk", watched)
    torch.testing.assert_close(knn_predict(features, labels, queries, num_classes=3, k=7), expected)
    assert max(sizes) <= max(similarities, 40)  # at least one query at a time
    assert len(sizes) == {1: 11, 40: 11, 100: 6}[similarities]
