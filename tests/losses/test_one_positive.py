"""InfoNCE, N-pair and NCE: one positive against negatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import info_nce, n_pair, nce, nt_xent
from tests.losses.losses_reference import check, gradient, normal

WEIGHTS = {"none": None, "mask": [1.0, 0.0, 1.0, 1.0], "weights": [0.5, 2.0, 0.0, 1.0], "all masked": [0.0] * 4}
weighted = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())


def tensor(weight):
    return None if weight is None else torch.tensor(weight)


def mean(terms, weight):
    factors = [1.0] * len(terms) if weight is None else weight
    return sum(w * term for w, term in zip(factors, terms, strict=True)) / len(terms)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def find(positive, negatives):
    return -math.log(math.exp(positive) / (math.exp(positive) + sum(math.exp(x) for x in negatives)))


def info_nce_loops(q, p, temperature, extra, weight):
    terms = []
    for i in range(len(q)):
        others = [p[j] for j in range(len(p)) if j != i] if extra is None else extra
        terms.append(find(cosine(q[i], p[i]) / temperature, [cosine(q[i], other) / temperature for other in others]))
    return mean(terms, weight)


def n_pair_loops(a, p, penalty, weight):
    terms = []
    for i in range(len(a)):
        loss = find(dot(a[i], p[i]), [dot(a[i], p[j]) for j in range(len(p)) if j != i])
        terms.append(loss + penalty * (dot(a[i], a[i]) + dot(p[i], p[i])))
    return mean(terms, weight)


def nce_loops(positive, negatives, weight):
    terms = []
    for real, noise in zip(positive, negatives, strict=True):
        m = len(noise)
        h = [math.exp(ratio) / (math.exp(ratio) + m) for ratio in (real, *noise)]  # P_n cancels out
        terms.append(-math.log(h[0]) - sum(math.log(1 - x) for x in h[1:]))
    return mean(terms, weight)


@weighted
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("k", [None, 0, 1, 5])
def test_info_nce_matches_loops(temperature, k, weight):
    q, p = normal(4, 3, scale=2.0), normal(4, 3, seed=1)
    extra = None if k is None else normal(k, 3, seed=2)
    others = None if extra is None else torch.tensor(extra)
    w = tensor(weight)
    check(
        lambda z: info_nce(z, torch.tensor(p).to(z.dtype), temperature, others, w),
        lambda z: info_nce_loops(z, p, temperature, extra, weight),
        q,
    )
    check(
        lambda z: info_nce(torch.tensor(q).to(z.dtype), z, temperature, others, w),
        lambda z: info_nce_loops(q, z, temperature, extra, weight),
        p,
    )


def test_negatives_get_gradient():
    q, p, extra = normal(4, 3), normal(4, 3, seed=1), normal(5, 3, seed=2)
    check(
        lambda z: info_nce(torch.tensor(q).to(z.dtype), torch.tensor(p).to(z.dtype), 0.5, z),
        lambda z: info_nce_loops(q, p, 0.5, z, None),
        extra,
    )


@weighted
@pytest.mark.parametrize("penalty", [0.0, 0.02])
def test_n_pair_matches_loops(penalty, weight):
    a, p = normal(4, 3), normal(4, 3, seed=1)
    w = tensor(weight)
    check(
        lambda z: n_pair(z, torch.tensor(p).to(z.dtype), penalty, w), lambda z: n_pair_loops(z, p, penalty, weight), a
    )
    check(
        lambda z: n_pair(torch.tensor(a).to(z.dtype), z, penalty, w), lambda z: n_pair_loops(a, z, penalty, weight), p
    )


@weighted
@pytest.mark.parametrize("m", [1, 3])
def test_nce_matches_loops(m, weight):
    positive, negatives = normal(4, scale=2.0), normal(4, m, seed=1)
    w = tensor(weight)
    check(lambda z: nce(z, torch.tensor(negatives).to(z.dtype), w), lambda z: nce_loops(z, negatives, weight), positive)
    check(lambda z: nce(torch.tensor(positive).to(z.dtype), z, w), lambda z: nce_loops(positive, z, weight), negatives)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, w: info_nce(z, z.roll(1, 0).detach(), 0.5, None, w),
        lambda z, w: info_nce(z, z.roll(1, 0).detach(), 0.5, z.detach(), w),
        lambda z, w: n_pair(z, z.roll(1, 0), 0.1, w),
        lambda z, w: nce(z[:, 0], z[:, 1:], w),
    ],
    ids=["info_nce", "info_nce with negatives", "n_pair", "nce"],
)
def test_everything_masked_is_exactly_0(loss):
    z, masked = torch.tensor(normal(5, 4)), torch.zeros(5, dtype=torch.bool)
    assert float(loss(z, masked)) == 0.0
    assert torch.equal(gradient(lambda x: loss(x, masked), z), torch.zeros_like(z))
    everyone = torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(loss(z, everyone), loss(z, None))


def test_info_nce_decoupled_leaves_the_positive_out():
    q, p, extra = normal(3, 4), normal(3, 4, seed=1), normal(5, 4, seed=2)

    def reference(q):
        whole = [math.exp(info_nce_loops(q[i : i + 1], p[i : i + 1], 0.5, extra, None)) for i in range(len(q))]
        return sum(math.log(x - 1) for x in whole) / len(q)  # (positive + negatives) / positive - 1

    tensors = (torch.tensor(p), torch.tensor(extra))
    check(lambda z: info_nce(z, tensors[0].to(z), 0.5, tensors[1].to(z), decoupled=True), reference, q)
    with pytest.raises(SemisupError, match="decoupled"):
        info_nce(torch.ones(2, 3), torch.ones(2, 3), 0.5, decoupled=True)


def test_info_nce_by_hand():
    eye = torch.eye(4)
    assert float(info_nce(eye, eye, 0.5)) == pytest.approx(math.log(1 + 3 * math.exp(-2)), rel=1e-5)
    ones = torch.ones(4, 3)
    assert float(info_nce(ones, ones, 0.07)) == pytest.approx(math.log(4), rel=1e-5)  # chance: the batch
    assert float(info_nce(ones, ones, 0.07, torch.ones(9, 3))) == pytest.approx(math.log(10), rel=1e-5)  # ... 1 + K
    # MoCo: positive 1, K negatives 0.
    value = info_nce(eye[:2].double(), eye[:2].double(), 0.07, eye[2:].repeat(8, 1))
    assert float(value) == pytest.approx(math.log(1 + 16 * math.exp(-1 / 0.07)), rel=1e-6)


def test_info_nce_over_all_other_views_is_nt_xent():
    """The two differ in their candidates only: with one pair and a memory, both have the positive and the memory."""
    z, memory = torch.tensor(normal(2, 4)), torch.tensor(normal(6, 4, seed=1))
    both = (info_nce(z[:1], z[1:], 0.3, memory) + info_nce(z[1:], z[:1], 0.3, memory)) / 2
    torch.testing.assert_close(nt_xent(z, 0.3, memory), both)


def test_info_nce_is_at_most_log_n_below():
    z = torch.tensor(normal(6, 4))
    assert float(info_nce(z, z, 0.01)) == pytest.approx(0.0, abs=1e-6)  # log N - L <= log N


def test_info_nce_invariances():
    q, p = torch.tensor(normal(5, 4)), torch.tensor(normal(5, 4, seed=1))
    extra = torch.tensor(normal(3, 4, seed=2))
    order, rotation = torch.tensor([3, 0, 4, 1, 2]), torch.tensor(np.linalg.qr(normal(4, 4, seed=3))[0])
    for negatives in (None, extra):
        value = info_nce(q, p, 0.5, negatives)
        torch.testing.assert_close(info_nce(q[order], p[order], 0.5, negatives), value)
        torch.testing.assert_close(info_nce(3 * q, p / 7, 0.5, None if negatives is None else 2 * negatives), value)
        turned = None if negatives is None else negatives @ rotation
        torch.testing.assert_close(info_nce(q @ rotation, p @ rotation, 0.5, turned), value)
        assert abs(float(info_nce(q, p[order], 0.5, negatives) - value)) > 1e-3


def test_n_pair_by_hand():
    eye = torch.eye(5)
    assert float(n_pair(eye, eye)) == pytest.approx(math.log(1 + 4 * math.exp(-1)), rel=1e-5)
    assert float(n_pair(torch.zeros(5, 3), torch.ones(5, 3))) == pytest.approx(math.log(5), rel=1e-6)
    assert float(n_pair(eye, eye, 0.1)) == pytest.approx(math.log(1 + 4 * math.exp(-1)) + 0.2, rel=1e-5)


def test_n_pair_invariances():
    a, p = torch.tensor(normal(5, 4)), torch.tensor(normal(5, 4, seed=1))
    order, rotation = torch.tensor([3, 0, 4, 1, 2]), torch.tensor(np.linalg.qr(normal(4, 4, seed=3))[0])
    value = n_pair(a, p, 0.1)
    torch.testing.assert_close(n_pair(a[order], p[order], 0.1), value)
    torch.testing.assert_close(n_pair(a @ rotation, p @ rotation, 0.1), value)
    assert abs(float(n_pair(3 * a, p, 0.1) - value)) > 1e-3  # lengths matter


@pytest.mark.parametrize("m", [1, 16, 4096])
def test_nce_of_a_model_that_equals_the_noise(m):
    """NPID's chance level, 9.3179 for m = 4096."""
    value = float(nce(torch.zeros(3), torch.zeros(3, m)))
    assert value == pytest.approx(math.log(1 + m) + m * math.log(1 + 1 / m), rel=1e-5)
    if m == 4096:
        assert value == pytest.approx(9.3179, abs=1e-3)


def test_nce_does_not_depend_on_the_order_of_the_noise():
    positive, negatives = torch.tensor(normal(4)), torch.tensor(normal(4, 6, seed=1))
    torch.testing.assert_close(nce(positive, negatives.flip(1)), nce(positive, negatives))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(nce(positive[order], negatives[order]), nce(positive, negatives))


def test_one_sample():
    z = torch.tensor(normal(1, 4)).float()
    for loss in (lambda x: info_nce(x, z, 0.5), lambda x: n_pair(x, z)):  # no negative: nothing to tell apart
        assert float(loss(z)) == 0.0
        assert torch.equal(gradient(loss, z), torch.zeros(1, 4))
    assert float(nce(z[:, 0], z[:, 1:2])) > 0


def test_zero_rows_and_extreme_scores_are_finite():
    zero = torch.zeros(4, 3)
    for loss in (lambda x: info_nce(x, x, 0.5), lambda x: n_pair(x, x, 0.1)):
        assert float(loss(zero)) == pytest.approx(math.log(4), rel=1e-6)
        assert bool(gradient(loss, zero).isfinite().all())
    extreme = torch.tensor([1e4, -1e4, 0.0])
    assert bool(gradient(lambda x: nce(x, x.unsqueeze(1)), extreme).isfinite().all())
    eye = torch.eye(4)
    for dtype in (torch.float16, torch.bfloat16):  # exp(1 / 0.05) overflows float16
        value = info_nce(eye.to(dtype), eye.to(dtype), 0.05)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(math.log(1 + 3 * math.exp(-20)), abs=1e-6)


@pytest.mark.parametrize(
    "loss", [lambda q, p: info_nce(q, p, 0.05), lambda q, p: info_nce(q, p, 0.05, p.flip(0)), n_pair]
)
def test_autocast_does_not_round_the_products(loss):
    q, p = torch.tensor(normal(32, 16)).float(), torch.tensor(normal(32, 16, seed=1)).float()
    outside = loss(q, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (q @ p.T).dtype == torch.bfloat16  # what would happen
        inside = loss(q, p)
    assert torch.equal(inside, outside)


def test_mistakes_are_named():
    z = torch.ones(4, 2)
    for q, p in ((z, torch.ones(3, 2)), (torch.ones(4), torch.ones(4)), (torch.ones(0, 2), torch.ones(0, 2))):
        with pytest.raises(SemisupError, match=r"queries and positives must both be \(N, D\) with N >= 1"):
            info_nce(q, p, 0.5)
        with pytest.raises(SemisupError, match=r"anchors and positives must both be \(N, D\) with N >= 1"):
            n_pair(q, p)
    with pytest.raises(SemisupError, match=r"negatives must be \(K, 2\), as wide as queries, got shape \(5, 3\)"):
        info_nce(z, z, 0.5, torch.ones(5, 3))
    for temperature in (0.0, -0.1, math.nan):
        with pytest.raises(SemisupError, match="temperature must be positive"):
            info_nce(z, z, temperature)
    with pytest.raises(SemisupError, match="norm_penalty must be at least 0"):
        n_pair(z, z, -1.0)
    with pytest.raises(SemisupError, match=r"positive must be \(N,\) with N >= 1"):
        nce(z, z)
    for negatives in (torch.ones(3, 2), torch.ones(4), torch.ones(4, 0)):
        with pytest.raises(SemisupError, match=r"negatives must be \(4, m\) with m >= 1"):
            nce(torch.ones(4), negatives)
    for loss in (lambda w: info_nce(z, z, 0.5, None, w), lambda w: n_pair(z, z, 0.0, w), lambda w: nce(z[:, 0], z, w)):
        with pytest.raises(SemisupError, match=r"weight must have shape \(4,\), one per row, got \(4, 1\)"):
            loss(torch.ones(4, 1))
