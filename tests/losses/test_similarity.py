from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import neighbor_predictions, pseudo_label_graph, similarity, soft_cross_entropy, unfold_classes
from tests.losses.losses_reference import check, normal, softmax

LABELS = [2, 0, 1, 1, 0]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def slow_graph(p, threshold):
    n = len(p)
    graph = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            edge = 1.0 if i == j else sum(a * b for a, b in zip(p[i], p[j], strict=True))
            graph[i, j] = edge if edge >= threshold else 0.0
        graph[i] /= sum(graph[i])
    return graph


def slow_predictions(shares, predictions):
    out = np.zeros((len(shares), predictions.shape[1]))
    for n in range(len(shares)):
        for k in range(len(predictions)):
            for c in range(predictions.shape[1]):
                out[n, c] += shares[n, k] * predictions[k, c]
    return out


def slow_unfold(shares, probs, labels):
    out = np.zeros_like(shares)
    for n in range(len(shares)):
        weighed = [shares[n, k] * probs[n, label] for k, label in enumerate(labels)]
        out[n] = [value / sum(weighed) for value in weighed]
    return out


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_similarity_matches_loops(rows, temperature):
    keys, pick = normal(4, 3, seed=1, scale=3.0), normal(rows, 4, seed=2)
    check(
        lambda z: (similarity(z, torch.tensor(keys).to(z), temperature) * torch.tensor(pick).to(z)).sum(),
        lambda z: sum(
            pick[i, k] * cosine(z[i], keys[k]) / temperature for i in range(len(z)) for k in range(len(keys))
        ),
        normal(rows, 3),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_contrast_with_the_graph_matches_loops(threshold):
    """CoMatch: the cross-entropy of each row of similarities to its row of the graph."""
    probs, second = softmax(2 * normal(6, 4)), normal(6, 3, seed=1)
    graph = slow_graph(probs, threshold)

    def reference(z):
        total = 0.0
        for i in range(6):
            powers = [math.exp(cosine(z[i], second[k]) / 0.2) for k in range(6)]
            total -= sum(graph[i, k] * math.log(powers[k] / sum(powers)) for k in range(6))
        return total / 6

    ours = pseudo_label_graph(torch.tensor(probs), threshold)
    check(
        lambda z: soft_cross_entropy(similarity(z, torch.tensor(second).to(z), 0.2), ours.to(z)),
        reference,
        normal(6, 3),
    )


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_graph_matches_loops(rows, threshold):
    probs = softmax(2 * normal(rows, 4))
    graph = pseudo_label_graph(torch.tensor(probs), threshold)
    np.testing.assert_allclose(graph.numpy(), slow_graph(probs, threshold), rtol=1e-12)
    np.testing.assert_allclose(graph.sum(1).numpy(), np.ones(rows), rtol=1e-12)  # methods.md 3.21


def test_graph_by_hand():
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(pseudo_label_graph(sure, 0.8), expected)
    # Whoever is unsure resembles nobody but itself: without the loop the row would be 0/0.
    assert torch.equal(pseudo_label_graph(torch.full((3, 4), 0.25), 0.8), torch.eye(3))


def test_graph_of_a_sure_batch_is_class_against_class():
    probs = torch.eye(3)[[0, 1, 0, 2]]
    graph = pseudo_label_graph(probs, 0.8)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(pseudo_label_graph(probs[order], 0.8), graph[order][:, order])  # images permuted
    torch.testing.assert_close(pseudo_label_graph(probs.flip(1), 0.8), graph)  # classes permuted


@pytest.mark.parametrize("rows", [1, 6])
def test_neighbor_predictions_match_loops(rows):
    shares, predictions = softmax(normal(rows, 5)), softmax(normal(5, 4, seed=1))
    got = neighbor_predictions(torch.tensor(shares), torch.tensor(predictions))
    np.testing.assert_allclose(got.numpy(), slow_predictions(shares, predictions), rtol=1e-12)
    np.testing.assert_allclose(got.sum(1).numpy(), np.ones(rows), rtol=1e-12)


def test_neighbors_with_labels_give_each_class_its_keys():
    got = neighbor_predictions(torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]]), torch.eye(4)[LABELS])
    torch.testing.assert_close(got, torch.tensor([[0.45, 0.45, 0.1, 0.0]]))


@pytest.mark.parametrize("rows", [1, 6])
def test_unfolded_shares_match_loops(rows):
    shares, probs = softmax(normal(rows, 5)), softmax(normal(rows, 4, seed=1))
    got = unfold_classes(torch.tensor(shares), torch.tensor(probs), torch.tensor(LABELS))
    np.testing.assert_allclose(got.numpy(), slow_unfold(shares, probs, LABELS), rtol=1e-12)
    np.testing.assert_allclose(got.sum(1).numpy(), np.ones(rows), rtol=1e-12)


def test_a_classifier_without_opinion_leaves_the_shares_as_they_are():
    shares = torch.tensor(softmax(normal(3, 5)))
    torch.testing.assert_close(
        unfold_classes(shares, torch.full((3, 3), 1 / 3, dtype=torch.float64), torch.tensor(LABELS)), shares
    )


def test_a_sure_classifier_leaves_its_own_class_alone():
    shares = torch.tensor(softmax(normal(1, 5)))
    got = unfold_classes(shares, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor(LABELS))
    assert got[0, [0, 1, 4]].tolist() == [0, 0, 0]
    torch.testing.assert_close(got[0, 2] / got[0, 3], shares[0, 2] / shares[0, 3])
    # All keys are of classes that cannot be.
    nothing = unfold_classes(shares.float(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.tensor(LABELS))
    assert nothing.tolist() == [[0.0] * 5]


def test_zero_embedding_has_a_finite_gradient():
    z = torch.zeros(2, 3, requires_grad=True)
    similarity(z, torch.ones(2, 3), 0.1).sum().backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_autocast_does_not_round_the_similarities():
    z, keys = torch.tensor(normal(9, 16)).float(), torch.tensor(normal(20, 16, seed=1)).float()
    probs = torch.tensor(softmax(normal(9, 4))).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = similarity(z, keys, 0.1), pseudo_label_graph(probs, 0.3), neighbor_predictions(probs, keys[:4])
    assert torch.equal(inside[0], similarity(z, keys, 0.1))
    assert torch.equal(inside[1], pseudo_label_graph(probs, 0.3))
    assert torch.equal(inside[2], neighbor_predictions(probs, keys[:4]))


def test_mistakes_are_named():
    with pytest.raises(SemisupError, match=r"queries and keys must be \(N, D\) and \(K, D\), got shapes \(2, 3\)"):
        similarity(torch.ones(2, 3), torch.ones(2, 4), 0.1)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            similarity(torch.ones(2, 3), torch.ones(2, 3), temperature)
    with pytest.raises(SemisupError, match=r"probs must be \(N, C\)"):
        pseudo_label_graph(torch.ones(3), 0.5)
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(SemisupError, match=r"threshold must lie in \[0, 1\]"):
            pseudo_label_graph(torch.ones(2, 3), threshold)
    with pytest.raises(SemisupError, match=r"shares and predictions must be \(N, K\) and \(K, C\)"):
        neighbor_predictions(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(SemisupError, match=r"shares and labels must be \(N, K\) and \(K,\)"):
        unfold_classes(torch.ones(2, 3), torch.ones(2, 4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(SemisupError, match=r"probs must be \(2, C\), one row per query"):
        unfold_classes(torch.ones(2, 3), torch.ones(3, 4), torch.zeros(3, dtype=torch.long))
