from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import batch_hard_triplet, contrastive_margin, soft_nearest_neighbor, triplet
from tests.losses.losses_reference import check, gradient, normal

LABELINGS = {
    "pairs": [0, 0, 1, 1, 2, 2],
    "uneven": [3, 0, 0, 0, 7, 3],
    "some alone": [0, 0, 1, 2, 2, 5],
    "some unknown": [0, -1, 0, 1, -1, 1],
    "all unknown": [-1] * 6,
    "all alone": [0, 1, 2, 3, 4, 5],
    "all one": [4] * 6,
}


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def positives(labels, i):
    return [j for j in range(len(labels)) if j != i and labels[j] == labels[i] >= 0]


def negatives(labels, i):
    return [j for j in range(len(labels)) if labels[i] >= 0 and labels[j] >= 0 and labels[j] != labels[i]]


def penalty(difference, margin):
    return math.log(1 + math.exp(difference)) if margin is None else max(0.0, difference + margin)


def batch_hard(z, labels, margin):
    """Equation 5 of Hermans et al., anchor by anchor."""
    terms = []
    for i in range(len(z)):
        near, far = negatives(labels, i), positives(labels, i)
        if near and far:
            difference = max(distance(z[i], z[j]) for j in far) - min(distance(z[i], z[j]) for j in near)
            terms.append(penalty(difference, margin))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("labels", LABELINGS.values(), ids=LABELINGS.keys())
@pytest.mark.parametrize("margin", [None, 0.0, 0.2, 3.0])
def test_batch_hard_matches_loops(labels, margin):
    y = torch.tensor(labels)
    check(lambda z: batch_hard_triplet(z, y, margin), lambda z: batch_hard(z, labels, margin), normal(6, 3))


def contrastive(z, labels, margin):
    """Hadsell et al., eq. 4, pair by pair."""
    terms = []
    for i in range(len(z)):
        for j in range(i):
            if min(labels[i], labels[j]) >= 0:
                d = distance(z[i], z[j])
                terms.append(d**2 / 2 if labels[i] == labels[j] else max(0.0, margin - d) ** 2 / 2)
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("labels", LABELINGS.values(), ids=LABELINGS.keys())
@pytest.mark.parametrize("margin", [0.0, 1.0, 3.0])
def test_contrastive_matches_loops(labels, margin):
    y = torch.tensor(labels)
    check(lambda z: contrastive_margin(z, y, margin), lambda z: contrastive(z, labels, margin), normal(6, 3))


@pytest.mark.parametrize(
    ("d", "labels", "expected"), [(0.0, [0, 0], 0.0), (1.0, [0, 1], 0.0), (0.5, [0, 1], 0.125), (0.5, [0, 0], 0.125)]
)
def test_contrastive_by_hand(d, labels, expected):
    value = contrastive_margin(torch.tensor([[0.0, 0.0], [d, 0.0]]), torch.tensor(labels), 1.0)
    assert float(value) == pytest.approx(expected)


KINDS = {
    "all": lambda ap, an, m: True,
    "hard": lambda ap, an, m: an <= ap,
    "semi_hard": lambda ap, an, m: ap < an <= ap + m,
    "easy": lambda ap, an, m: an > ap + m,
}


def triplets(z, labels, margin, mining, squared):
    """FaceNet, sec. 3: the penalty of every triplet of a kind."""
    terms = []
    for a in range(len(z)):
        for p in positives(labels, a):
            for n in negatives(labels, a):
                ap, an = (distance(z[a], z[j]) ** (2 if squared else 1) for j in (p, n))
                if KINDS[mining](ap, an, margin or 0.0):
                    terms.append(penalty(ap - an, margin))
    return terms


def triplet_mean(*arguments):
    terms = triplets(*arguments)
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("labels", LABELINGS.values(), ids=LABELINGS.keys())
@pytest.mark.parametrize("mining", KINDS)
@pytest.mark.parametrize(("margin", "squared"), [(0.2, True), (1.5, False), (None, True), (0.0, False)])
def test_triplet_matches_loops(labels, mining, margin, squared):
    if margin is None and mining == "semi_hard":
        return
    y = torch.tensor(labels)
    check(
        lambda z: triplet(z, y, margin, mining=mining, squared=squared),
        lambda z: triplet_mean(z, labels, margin, mining, squared),
        normal(6, 3),
    )


def test_the_three_kinds_are_all_triplets_and_none_is_empty():
    z, labels = normal(12, 3), [i % 3 for i in range(12)]
    sizes = {mining: len(triplets(z, labels, 1.0, mining, True)) for mining in KINDS}
    assert sizes["hard"] + sizes["semi_hard"] + sizes["easy"] == sizes["all"] == 12 * 3 * 8
    assert min(sizes.values()) > 10
    means = {mining: float(triplet(torch.tensor(z), torch.tensor(labels), 1.0, mining=mining)) for mining in KINDS}
    assert means["easy"] == 0.0 < means["semi_hard"] <= 1.0 < means["hard"]
    whole = sum(sizes[kind] * means[kind] for kind in ("hard", "semi_hard")) / sizes["all"]
    assert means["all"] == pytest.approx(whole)  # the easy ones are in the mean


def test_a_triplet_on_the_border():
    """Equal distances are hard; farther by exactly the margin is semi-hard."""
    y = torch.tensor([0, 0, 1])
    equal = torch.tensor([[0.0], [1.0], [-1.0]])
    assert float(triplet(equal, y, 0.5, mining="hard", squared=False)) == pytest.approx(0.5)  # the other anchor: easy
    margin = torch.tensor([[0.0], [1.0], [-1.5]])
    assert float(triplet(margin, y, 0.5, mining="semi_hard", squared=False)) == 0.0
    assert float(triplet(margin, y, None, mining="easy", squared=False)) == pytest.approx(
        (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(-1.5))) / 2
    )


@pytest.mark.parametrize(("margin", "expected"), [(None, math.log(2)), (0.3, 0.3)])
def test_triplet_of_collapsed_rows(margin, expected):
    assert float(triplet(torch.ones(6, 4), torch.arange(6) // 2, margin)) == pytest.approx(expected, abs=1e-6)


def soft_neighbor(z, labels, temperature):
    """Frosst et al., eq. 1, row by row; without those that are alone."""
    terms = []
    for i in range(len(z)):
        own, others = positives(labels, i), negatives(labels, i)
        if own:
            near = sum(math.exp(-(distance(z[i], z[j]) ** 2) / temperature) for j in own)
            everyone = near + sum(math.exp(-(distance(z[i], z[j]) ** 2) / temperature) for j in others)
            terms.append(-math.log(near / everyone))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("labels", LABELINGS.values(), ids=LABELINGS.keys())
@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
def test_soft_nearest_neighbor_matches_loops(labels, temperature):
    y = torch.tensor(labels)
    check(
        lambda z: soft_nearest_neighbor(z, y, temperature),
        lambda z: soft_neighbor(z, labels, temperature),
        normal(6, 3),
    )


@pytest.mark.parametrize("z", [torch.ones(12, 5), torch.eye(12)], ids=["collapsed", "orthogonal"])
def test_soft_nearest_neighbor_of_equidistant_rows(z):
    value = soft_nearest_neighbor(z, torch.arange(12) % 3, 0.7)
    assert float(value) == pytest.approx(math.log(11 / 3), rel=1e-6)


def test_soft_nearest_neighbor_does_not_underflow():
    """exp(-d^2 / T) = exp(-1e6) is 0 in any precision; the shares are not."""
    z = 1000 * torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert float(soft_nearest_neighbor(z, torch.tensor([0, 0, 1, 1]), 1.0)) == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(("margin", "expected"), [(None, math.log(2)), (0.3, 0.3)])
def test_batch_hard_of_collapsed_rows(margin, expected):
    z, y = torch.ones(8, 4), torch.arange(8) // 2
    assert float(batch_hard_triplet(z, y, margin)) == pytest.approx(expected, abs=1e-6)


def test_batch_hard_of_perfect_rows():
    """Positives identical, negatives orthogonal: log(1 + exp(-sqrt 2))."""
    z = torch.eye(4).repeat_interleave(3, 0)
    value = batch_hard_triplet(z, torch.arange(4).repeat_interleave(3))
    assert float(value) == pytest.approx(0.21762, abs=1e-5)
    assert float(value) == pytest.approx(math.log(1 + math.exp(-math.sqrt(2))), abs=1e-6)


def test_batch_hard_does_not_take_the_anchor_for_its_positive():
    """Alone in its class, the last row would be its own positive, at distance 0, and would add a term."""
    z, labels = normal(5, 3), [0, 0, 1, 1, 2]
    value = float(batch_hard_triplet(torch.tensor(z), torch.tensor(labels)))
    extra = penalty(-min(distance(z[4], z[j]) for j in range(4)), None)
    assert value == pytest.approx(batch_hard(z, labels, None))
    assert abs((4 * value + extra) / 5 - value) > 1e-3


def rotation(size, seed):
    return torch.tensor(np.linalg.qr(normal(size, size, seed=seed))[0])


BY_LABEL = {
    "batch_hard_triplet": lambda z, y: batch_hard_triplet(z, y),
    "batch_hard_triplet hinge": lambda z, y: batch_hard_triplet(z, y, 0.5),
    "contrastive_margin": contrastive_margin,
    "triplet": triplet,
    "triplet hard": lambda z, y: triplet(z, y, mining="hard"),
    "triplet semi-hard": lambda z, y: triplet(z, y, 1.0, mining="semi_hard", squared=False),
    "triplet easy": lambda z, y: triplet(z, y, None, mining="easy"),
    "soft_nearest_neighbor": lambda z, y: soft_nearest_neighbor(z, y, 0.5),
}
"""Losses of rows and labels."""

by_label = pytest.mark.parametrize("loss", BY_LABEL.values(), ids=BY_LABEL.keys())


@by_label
def test_invariances(loss):
    z, y = torch.tensor(normal(9, 4)), torch.tensor([0, 0, 0, 1, 1, 2, 2, -1, 3])
    value = loss(z, y)
    assert float(value) > 0
    order = torch.tensor([4, 8, 1, 0, 7, 3, 6, 2, 5])
    torch.testing.assert_close(loss(z[order], y[order]), value)  # rows permuted
    torch.testing.assert_close(loss(z, torch.tensor([5, 9, 0, 2])[y].where(y >= 0, -1)), value)  # classes renamed
    torch.testing.assert_close(loss(z @ rotation(4, 1), y), value)  # rotated
    torch.testing.assert_close(loss(z + 3.0, y), value)  # moved
    kept = y >= 0
    torch.testing.assert_close(loss(z[kept], y[kept]), value)  # unknown rows are not there
    assert abs(float(loss(z, y.roll(1)) - value)) > 1e-3  # but labels matter


@by_label
@pytest.mark.parametrize("labels", [[0], [-1], [-1, -1, -1, 0]], ids=str)
def test_without_a_pair_loss_and_gradient_are_0(loss, labels):
    z, y = torch.tensor(normal(len(labels), 3)), torch.tensor(labels)
    assert float(loss(z, y)) == 0.0
    assert torch.equal(gradient(lambda x: loss(x, y), z), torch.zeros_like(z))


@by_label
@pytest.mark.parametrize(
    ("z", "labels"),
    [
        (torch.zeros(6, 3), [0, 0, 0, 1, 1, 2]),
        (torch.ones(4, 3), [0, 0, 0, 0]),
        (torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), [0, 1, 1]),
        (1e4 * torch.eye(4), [0, 0, 1, 1]),
        (torch.zeros(3, 2).half(), [0, 0, 1]),
    ],
    ids=["collapsed", "one class", "negative at distance 0", "far apart", "half precision"],
)
def test_edges_are_finite_with_finite_gradients(loss, z, labels):
    y = torch.tensor(labels)
    value = loss(z, y)
    assert value.dtype == torch.float32
    assert bool(value.isfinite())
    assert bool(gradient(lambda x: loss(x, y), z).isfinite().all())


@by_label
def test_autocast_does_not_round_the_distances(loss):
    z, y = torch.tensor(normal(20, 8)).float(), torch.arange(20) % 4
    outside = loss(z, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(z, y)
    assert torch.equal(inside, outside)


def test_close_rows_keep_their_distance():
    """|a|^2 + |b|^2 - 2ab would lose it: 1e-3 apart at length 100 is nothing in float32."""
    z = torch.tensor([[100.0, 0.0], [100.0, 1e-3], [100.0, 3e-3], [100.0, 5e-3]])
    value = batch_hard_triplet(z, torch.tensor([0, 1, 0, 1]), 0.0)
    assert float(value) == pytest.approx((2e-3 + 3e-3 + 1e-3 + 2e-3) / 4, rel=1e-3)


@by_label
def test_mistakes_of_rows_and_labels_are_named(loss):
    for z in (torch.ones(4), torch.ones(0, 2)):
        with pytest.raises(SemisupError, match=r"z must be \(N, D\) with N >= 1, got shape \("):
            loss(z, torch.zeros(len(z), dtype=torch.long))
    for labels in (torch.zeros(3, dtype=torch.long), torch.zeros(4, 1, dtype=torch.long)):
        with pytest.raises(SemisupError, match=r"labels must have shape \(4,\), one per row"):
            loss(torch.ones(4, 2), labels)


@pytest.mark.parametrize("margin", [-0.1, math.nan])
@pytest.mark.parametrize("loss", [batch_hard_triplet, contrastive_margin, triplet])
def test_a_negative_margin_is_named(loss, margin):
    with pytest.raises(SemisupError, match="margin must be at least 0"):
        loss(torch.ones(4, 2), torch.zeros(4, dtype=torch.long), margin)


def test_mistakes_of_mining_and_temperature_are_named():
    z, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(SemisupError, match="mining must be all, hard, semi_hard or easy, got 'semihard'"):
        triplet(z, y, mining="semihard")
    with pytest.raises(SemisupError, match="semi_hard needs a margin"):
        triplet(z, y, None, mining="semi_hard")
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            soft_nearest_neighbor(z, y, temperature)


def test_unit_vectors_are_the_callers_choice():
    z, y = torch.tensor(normal(6, 3, scale=5.0)), torch.tensor([0, 0, 1, 1, 2, 2])
    assert abs(float(batch_hard_triplet(z, y) - batch_hard_triplet(F.normalize(z, dim=1), y))) > 1e-2
