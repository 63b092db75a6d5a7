from __future__ import annotations

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import align_distribution
from tests.losses.losses_reference import gradient, normal, numeric_gradient, softmax

PROBS = softmax(normal(6, 4))
TARGET = np.array([0.4, 0.3, 0.2, 0.1])
MODEL = np.array([0.1, 0.5, 0.15, 0.25])


def reference(p, target, model, eps=1e-6):
    out = np.zeros_like(p)
    for n in range(len(p)):
        scaled = [p[n, c] * (target[c] + eps) / (model[c] + eps) for c in range(p.shape[1])]
        out[n] = [value / sum(scaled) for value in scaled]
    return out


@pytest.mark.parametrize("rows", [1, 6])
def test_matches_loops(rows):
    probs = torch.tensor(PROBS[:rows])
    target, model = torch.tensor(TARGET), torch.tensor(MODEL)
    expected = reference(PROBS[:rows], TARGET, MODEL)
    np.testing.assert_allclose(align_distribution(probs, target, model).numpy(), expected, rtol=1e-12)
    single = align_distribution(probs.float(), target.float(), model.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-5)
    pick = normal(rows, 4, seed=2)
    grad = gradient(lambda p: (align_distribution(p, target, model) * torch.tensor(pick)).sum(), probs)
    slow = numeric_gradient(lambda p: float((reference(p, TARGET, MODEL) * pick).sum()), PROBS[:rows], 1e-6)
    np.testing.assert_allclose(grad.numpy(), slow, rtol=1e-5, atol=1e-7)


def test_nothing_changes_where_the_model_already_agrees():
    probs, target = torch.tensor(PROBS), torch.tensor(TARGET)
    torch.testing.assert_close(align_distribution(probs, target, target), probs)


def test_rows_sum_to_one_and_move_towards_the_wanted_classes():
    probs = torch.tensor(PROBS)
    aligned = align_distribution(probs, torch.tensor(TARGET), torch.tensor(MODEL))
    torch.testing.assert_close(aligned.sum(1), torch.ones(6, dtype=torch.float64))
    assert (aligned[:, 0] > probs[:, 0]).all()  # wanted 0.4, predicted 0.1
    assert (aligned[:, 3] < probs[:, 3]).all()  # wanted 0.1, predicted 0.25


def test_uniform_predictions_become_the_ratio():
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    ratio = (TARGET + 1e-6) / (MODEL + 1e-6)
    aligned = align_distribution(uniform, torch.tensor(TARGET), torch.tensor(MODEL))
    np.testing.assert_allclose(aligned[0].numpy(), ratio / ratio.sum())


def test_a_class_never_predicted_does_not_divide_by_zero():
    model = torch.tensor([0.0, 0.5, 0.25, 0.25])
    aligned = align_distribution(torch.tensor(PROBS).float(), torch.tensor(TARGET).float(), model)
    assert torch.isfinite(aligned).all()
    torch.testing.assert_close(aligned.sum(1), torch.ones(6))
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert torch.equal(align_distribution(one_hot, torch.zeros(4), torch.ones(4)), one_hot)


def test_mistakes_are_named():
    probs, good = torch.tensor(PROBS), torch.tensor(TARGET)
    with pytest.raises(SemisupError, match=r"target must have shape \(4,\), one per class, got \(6, 4\)"):
        align_distribution(probs, probs, good)
    with pytest.raises(SemisupError, match=r"model must have shape \(4,\), one per class, got \(3,\)"):
        align_distribution(probs, good, good[:3])
