from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.errors import SemisupError
from semisup.losses import annealed_cross_entropy, entropy, pseudo_label_cross_entropy, soft_cross_entropy
from tests.losses.losses_reference import check, gradient, normal, softmax

LOGITS = normal(6, 4, scale=2.0)
TARGET = softmax(normal(6, 4, seed=1))
LABELS = np.array([0, 3, 1, 1, 2, 0])


def soft_reference(z, q, weight):
    p = softmax(z)
    total = 0.0
    for n in range(len(z)):
        total += weight[n] * -sum(q[n, c] * math.log(p[n, c]) for c in range(z.shape[1]))
    return total / len(z)


def pseudo_reference(z, labels, mask):
    p = softmax(z)
    return sum(mask[n] * -math.log(p[n, labels[n]]) for n in range(len(z))) / len(z)


def annealed_reference(z, labels, threshold):
    p = softmax(z)
    kept = [-math.log(p[n, labels[n]]) for n in range(len(z)) if p[n, labels[n]] <= threshold]
    return sum(kept) / len(kept) if kept else 0.0


def entropy_reference(z):
    p = softmax(z)
    return sum(-p[n, c] * math.log(p[n, c]) for n in range(len(z)) for c in range(z.shape[1])) / len(z)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("weight", [None, [0.0, 1.0, 0.5, 2.0, 0.0, 1.0]])
def test_soft_cross_entropy_matches_loops(rows, weight):
    target = torch.tensor(TARGET[:rows])
    factor = None if weight is None else torch.tensor(weight[:rows])
    numbers = [1.0] * rows if weight is None else weight[:rows]
    check(
        lambda z: soft_cross_entropy(z, target.to(z.dtype), factor),
        lambda z: soft_reference(z, TARGET[:rows], numbers),
        LOGITS[:rows],
    )


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("mask", [[1, 0, 1, 1, 0, 0], [0.2, 0.9, 0.0, 1.0, 0.5, 0.1]])
def test_pseudo_label_cross_entropy_matches_loops(rows, mask):
    weights = torch.tensor(mask[:rows], dtype=torch.float64)
    check(
        lambda z: pseudo_label_cross_entropy(z, torch.tensor(LABELS[:rows]), weights),
        lambda z: pseudo_reference(z, LABELS[:rows], mask[:rows]),
        LOGITS[:rows],
    )


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("threshold", [1e-3, 0.1, 0.3, 0.5, 1.0])
def test_annealed_cross_entropy_matches_loops(rows, threshold):
    check(
        lambda z: annealed_cross_entropy(z, torch.tensor(LABELS[:rows]), threshold),
        lambda z: annealed_reference(z, LABELS[:rows], threshold),
        LOGITS[:rows],
    )


def test_annealing_leaves_out_what_is_known_and_divides_by_the_rest():
    # Two classes with logits (0, a): losses 1, 2, 3, 4, probabilities .37, .14, .05, .02.
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    logits = torch.stack([torch.zeros(4, dtype=torch.float64), (losses.exp() - 1).log()], dim=1)
    labels = torch.zeros(4, dtype=torch.long)
    for threshold, value in ((1.0, 2.5), (0.2, 3.0), (0.1, 3.5), (0.04, 4.0), (0.01, 0.0)):
        assert float(annealed_cross_entropy(logits, labels, threshold)) == pytest.approx(value)
    assert float(annealed_cross_entropy(logits, labels, 0.1)) != pytest.approx(7 / 4)  # USB: divided by all rows


def test_annealing_goes_by_the_probability_of_the_label_and_not_by_the_largest():
    logits, labels = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([1])
    assert float(annealed_cross_entropy(logits, labels, 0.5)) == pytest.approx(float(F.cross_entropy(logits, labels)))


def test_annealing_at_1_is_plain_cross_entropy_also_of_certain_rows():
    logits, labels = torch.tensor([[1e3, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(annealed_cross_entropy(logits, labels, 1.0), F.cross_entropy(logits, labels))


def test_everything_known_is_exactly_zero_with_zero_gradient():
    logits, labels = 50 * F.one_hot(torch.tensor(LABELS), 4).float(), torch.tensor(LABELS)
    assert float(annealed_cross_entropy(logits, labels, 0.9)) == 0.0
    assert torch.equal(gradient(lambda z: annealed_cross_entropy(z, labels, 0.9), logits), torch.zeros(6, 4))


def test_annealing_names_mistakes():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    with pytest.raises(SemisupError, match=r"labels must have shape \(6,\), one per row, got \(6, 1\)"):
        annealed_cross_entropy(logits, labels[:, None], 0.5)
    for threshold in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(SemisupError, match=r"threshold must lie in \(0, 1\], got"):
            annealed_cross_entropy(logits, labels, threshold)


@pytest.mark.parametrize("rows", [1, 6])
def test_entropy_matches_loops(rows):
    check(entropy, entropy_reference, LOGITS[:rows])


def test_one_hot_target_is_plain_cross_entropy():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    one_hot = F.one_hot(labels, 4).double()
    torch.testing.assert_close(soft_cross_entropy(logits, one_hot), F.cross_entropy(logits, labels))
    everything = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(pseudo_label_cross_entropy(logits, labels, everything), F.cross_entropy(logits, labels))


def test_soft_targets_pass_gradient_unless_detached():
    logits, target = torch.tensor(LOGITS), torch.tensor(TARGET, requires_grad=True)
    (grad,) = torch.autograd.grad(soft_cross_entropy(logits, target), target)
    torch.testing.assert_close(grad, -F.log_softmax(logits, dim=1) / 6)
    assert not soft_cross_entropy(logits, target.detach()).requires_grad


def test_mask_divides_by_all_samples_not_by_the_kept():
    # Two classes with logits (0, a): CE of class 0 is log(1 + e^a). Losses 1, 2, 3, 4; the first and last are kept.
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    logits = torch.stack([torch.zeros(4, dtype=torch.float64), (losses.exp() - 1).log()], dim=1)
    labels, mask = torch.zeros(4, dtype=torch.long), torch.tensor([True, False, False, True])
    value = float(pseudo_label_cross_entropy(logits, labels, mask))
    assert value == pytest.approx(1.25)
    assert value != pytest.approx(2.5)  # the mean over kept samples
    one_hot = F.one_hot(labels, 2).double()
    assert float(soft_cross_entropy(logits, one_hot, mask)) == pytest.approx(1.25)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_nothing_kept_is_exactly_zero_with_zero_gradient(kind):
    logits, labels = torch.tensor(LOGITS).float(), torch.tensor(LABELS)
    mask, target = torch.zeros(6, dtype=kind), torch.tensor(TARGET).float()
    for loss in (
        lambda z: pseudo_label_cross_entropy(z, labels, mask),
        lambda z: soft_cross_entropy(z, target, mask),
    ):
        assert float(loss(logits)) == 0.0
        assert torch.equal(gradient(loss, logits), torch.zeros(6, 4))


def test_pseudo_label_on_own_argmax_is_minus_log_of_the_confidence():
    logits = torch.tensor(LOGITS)
    probs = F.softmax(logits, dim=1)
    confidence, labels = probs.max(dim=1)
    everything = torch.ones(6)
    value = pseudo_label_cross_entropy(logits, labels, everything)
    torch.testing.assert_close(value, -confidence.log().mean())
    grad = gradient(lambda z: pseudo_label_cross_entropy(z, labels, everything), logits)
    torch.testing.assert_close(grad, (probs - F.one_hot(labels, 4)) / 6)


def test_column_mask_is_refused_and_not_broadcast():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    with pytest.raises(SemisupError, match=r"mask must have shape \(6,\), one per row, got \(6, 1\)"):
        pseudo_label_cross_entropy(logits, labels, torch.ones(6, 1))
    with pytest.raises(SemisupError, match=r"labels must have shape \(6,\), one per row, got \(5,\)"):
        pseudo_label_cross_entropy(logits, labels[:5], torch.ones(6))
    with pytest.raises(SemisupError, match=r"weight must have shape \(6,\)"):
        soft_cross_entropy(logits, torch.tensor(TARGET), torch.ones(6, 1))
    with pytest.raises(SemisupError, match=r"target_probs must have the shape of logits \(6, 4\), got \(6, 3\)"):
        soft_cross_entropy(logits, torch.tensor(TARGET[:, :3]))


def test_entropy_at_uniform_is_log_c_with_zero_gradient():
    logits = torch.full((3, 7), 1.5, dtype=torch.float64)
    assert float(entropy(logits)) == pytest.approx(math.log(7))
    assert gradient(entropy, logits).abs().max() < 1e-15


def test_entropy_gradient_by_hand():
    logits = torch.tensor(LOGITS)
    p = F.softmax(logits, dim=1)
    each = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(gradient(entropy, logits), -p * (p.log() + each) / 6)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert float(entropy(logits)) == 0.0
    assert torch.isfinite(gradient(entropy, logits)).all()
    assert float(soft_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]))) == 0.0


def test_invariance_to_a_shift_of_the_logits_and_to_the_order_of_rows():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    mask, target = torch.tensor([1.0, 0, 1, 1, 0, 0]), torch.tensor(TARGET)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shifted = logits + torch.arange(6.0).unsqueeze(1)
    torch.testing.assert_close(entropy(shifted[order]), entropy(logits))
    torch.testing.assert_close(
        pseudo_label_cross_entropy(shifted[order], labels[order], mask[order]),
        pseudo_label_cross_entropy(logits, labels, mask),
    )
    torch.testing.assert_close(
        soft_cross_entropy(shifted[order], target[order], mask[order]), soft_cross_entropy(logits, target, mask)
    )


def test_teaching_with_ones_own_soft_labels_teaches_nothing():
    # Meta Pseudo Labels: the official code's soft labels make the teacher's term vanish; a hard label does not.
    logits = torch.tensor(LOGITS)
    probs = F.softmax(logits, dim=1)
    assert gradient(lambda z: soft_cross_entropy(z, probs), logits).abs().max() < 1e-15
    hard = gradient(lambda z: pseudo_label_cross_entropy(z, probs.argmax(1), torch.ones(6)), logits)
    assert hard.abs().max() > 1e-2
