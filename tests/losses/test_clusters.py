from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import cross_view_cross_entropy, self_distillation, sinkhorn
from tests.losses.losses_reference import check, gradient, normal, softmax


def reference_pairs(logits, targets):
    """Image by image, for every view that answers and every other one that it is asked about."""
    total, pairs = 0.0, 0
    for g in range(len(targets)):
        for v in range(len(logits)):
            if v == g:
                continue
            answers = softmax(logits[v])
            for n in range(len(answers)):
                total += -sum(targets[g, n, k] * math.log(answers[n, k]) for k in range(answers.shape[1]))
                pairs += 1
    return total / pairs


def reference_sinkhorn(scores, epsilon, iterations):
    """As published, by exponentials: Q is (K, N) and sums to 1; rows to 1 / K, then columns to 1 / N."""
    n, k = scores.shape
    q = np.array([[math.exp(scores[j, i] / epsilon) for j in range(n)] for i in range(k)])
    q = q / q.sum()
    for _ in range(iterations):
        for i in range(k):
            q[i] = q[i] / q[i].sum() / k
        for j in range(n):
            q[:, j] = q[:, j] / q[:, j].sum() / n
    return (q * n).T


def targets(views, n, k, seed=5):
    return np.stack([softmax(normal(n, k, seed=seed + g)) for g in range(views)])


@pytest.mark.parametrize(("views", "assigned"), [(2, 1), (2, 2), (5, 2), (3, 3)])
@pytest.mark.parametrize("n", [1, 4])
def test_matches_loops(views, assigned, n):
    given = targets(assigned, n, 3)
    check(
        lambda z: cross_view_cross_entropy(z.view(views, n, 3), torch.tensor(given).to(z.dtype)),
        lambda z: reference_pairs(z.reshape(views, n, 3), given),
        normal(views * n, 3, scale=2.0),
    )


def test_no_view_is_compared_with_itself():
    logits, given = torch.tensor(normal(3, 4, 5)), torch.tensor(targets(1, 4, 5))
    slopes = gradient(lambda z: cross_view_cross_entropy(z, given), logits)
    assert not slopes[0].any()
    assert slopes[1:].abs().amin() > 1e-4


def test_targets_are_a_variable_like_any_other():
    logits, given = torch.tensor(normal(3, 4, 5)), torch.tensor(targets(2, 4, 5))
    assert torch.autograd.gradcheck(lambda t: cross_view_cross_entropy(logits, t), (given.requires_grad_(),))


@pytest.mark.parametrize("clusters", [1, 7, 4096])
def test_uniform_predictions_cost_log_k(clusters):
    given = torch.rand(2, 3, clusters, generator=torch.Generator().manual_seed(0)).softmax(2)
    value = float(cross_view_cross_entropy(torch.full((4, 3, clusters), 2.0), given))
    assert value == pytest.approx(math.log(clusters), abs=1e-5)


def test_order_of_images_and_of_local_views_does_not_matter():
    logits, given = torch.tensor(normal(4, 6, 5)), torch.tensor(targets(2, 6, 5))
    value = cross_view_cross_entropy(logits, given)
    order = torch.tensor([3, 0, 4, 1, 2, 5])
    torch.testing.assert_close(cross_view_cross_entropy(logits[:, order], given[:, order]), value)
    torch.testing.assert_close(cross_view_cross_entropy(logits[[0, 1, 3, 2]], given), value)
    torch.testing.assert_close(cross_view_cross_entropy(logits[[1, 0, 2, 3]], given[[1, 0]]), value)
    assert abs(float(cross_view_cross_entropy(logits[:, order], given) - value)) > 1e-3


@pytest.mark.parametrize(("n", "k"), [(1, 3), (8, 3), (3, 8), (16, 16)])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_matches_the_published_exponentials(n, k, iterations):
    scores = normal(n, k, seed=1, scale=0.1)
    codes = sinkhorn(torch.tensor(scores), 0.05, iterations)
    np.testing.assert_allclose(codes.numpy(), reference_sinkhorn(scores, 0.05, iterations), rtol=1e-9)


def test_sinkhorn_rows_sum_to_one_and_clusters_become_equal():
    """methods.md 2.9: 16 images in 3 clusters, 16/3 of each, near after 3 iterations and reached after 200."""
    scores = torch.tensor(normal(16, 3, seed=2, scale=0.1))
    shares = {}
    for iterations in (1, 3, 200):
        codes = sinkhorn(scores, 0.05, iterations)
        torch.testing.assert_close(codes.sum(1), torch.ones(16, dtype=torch.float64))
        shares[iterations] = float((codes.sum(0) - 16 / 3).abs().max())
    assert shares[1] > shares[3] > 1e-3
    assert shares[200] < 1e-6


def test_sinkhorn_of_equal_scores_is_uniform_and_a_shift_changes_nothing():
    torch.testing.assert_close(sinkhorn(torch.full((5, 4), 0.3)), torch.full((5, 4), 0.25))
    scores = torch.tensor(normal(6, 4))
    torch.testing.assert_close(sinkhorn(scores + 100), sinkhorn(scores))


def test_sinkhorn_neither_overflows_nor_divides_by_zero():
    """exp(1 / 0.01) is beyond float32, and the smallest shares are below it."""
    scores = torch.tensor([[30.0, -30.0], [29.0, -30.0], [28.0, -30.0]])
    codes = sinkhorn(scores, 0.01)
    assert bool(codes.isfinite().all())
    torch.testing.assert_close(codes.sum(1), torch.ones(3))
    assert float(codes[:, 1].max()) > 0.4  # the empty cluster is given an image
    half = sinkhorn((scores / 30).half(), 0.05)
    assert half.dtype == torch.float32
    assert bool(half.isfinite().all())


def test_self_distillation_matches_loops():
    teacher, center = normal(2, 4, 3, seed=7), normal(3, seed=8)
    given = np.stack([softmax(view - center, 0.3) for view in teacher])
    check(
        lambda z: self_distillation(
            z.view(3, 4, 3), torch.tensor(teacher).to(z.dtype), torch.tensor(center).to(z.dtype), 0.7, 0.3
        ),
        lambda z: reference_pairs(z.reshape(3, 4, 3) / 0.7, given),
        normal(12, 3),
    )


def test_self_distillation_gives_teacher_and_center_no_gradient():
    student, teacher = torch.tensor(normal(2, 3, 4)).requires_grad_(), torch.tensor(normal(2, 3, 4)).requires_grad_()
    center = torch.tensor(normal(4)).requires_grad_()
    self_distillation(student, teacher, center, 0.1, 0.04).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert center.grad is None


def test_centering_takes_away_what_all_images_have_in_common():
    student, teacher = torch.tensor(normal(3, 4, 5)), torch.tensor(normal(2, 4, 5, seed=1))
    common = torch.tensor(normal(5, seed=2))
    value = self_distillation(student, teacher, torch.zeros(5, dtype=torch.float64), 0.1, 0.04)
    torch.testing.assert_close(self_distillation(student, teacher + common, common, 0.1, 0.04), value)


def test_published_temperatures_in_half_precision_do_not_overflow():
    views = F.normalize(torch.tensor(normal(2, 4, 5)), dim=2).half() * 50
    value = self_distillation(views, views, torch.zeros(5), 0.1, 0.04)
    assert value.dtype == torch.float32
    assert bool(value.isfinite())


def test_mistakes_are_named():
    two = torch.ones(2, 3, 4)
    for logits, given in ((two, two[0]), (two, torch.ones(2, 3, 5)), (two, torch.ones(2, 2, 4)), (two[:, :0],) * 2):
        with pytest.raises(SemisupError, match=r"logits and targets must be \(V, N, K\) and \(G, N, K\)"):
            cross_view_cross_entropy(logits, given)
    for logits, given in ((two[:1], two[:1]), (two, torch.ones(3, 3, 4)), (two, two[:0])):
        with pytest.raises(SemisupError, match="at least two views, and targets for one to all of them, got"):
            cross_view_cross_entropy(logits, given)
    for scores in (torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(SemisupError, match=r"scores must be \(N, K\) with N >= 1"):
            sinkhorn(scores)
    for epsilon, iterations in ((0.0, 3), (math.nan, 3), (0.05, 0)):
        with pytest.raises(SemisupError, match="epsilon must be positive and iterations at least 1"):
            sinkhorn(torch.ones(2, 3), epsilon, iterations)
    with pytest.raises(SemisupError, match=r"center must have shape \(4,\), got \(3,\)"):
        self_distillation(two, two, torch.ones(3), 0.1, 0.04)
    for student, teacher in ((0.0, 0.04), (0.1, -1.0)):
        with pytest.raises(SemisupError, match="temperatures must be positive"):
            self_distillation(two, two, torch.ones(4), student, teacher)
