from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate import classification_metrics, confusion_matrix, expected_calibration_error
from semisup.evaluate.metrics import predictions_collapsed


def sample(n: int = 200, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) * 1.5
    logits[torch.arange(n), y] += 1.0
    return logits, y


def reference(logits, y, classes):
    """One sample at a time, in python floats."""
    n = len(y)
    guesses, right, nll, brier = [], [], 0.0, 0.0
    per_class = {c: [] for c in range(classes)}
    bins = [[] for _ in range(15)]
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        p = [math.exp(v - max(z)) for v in z]
        p = [v / sum(p) for v in p]
        guess = p.index(max(p))
        guesses.append(guess)
        right.append(guess == label)
        per_class[label].append(guess == label)
        nll -= math.log(p[label]) / n
        brier += sum((v - (c == label)) ** 2 for c, v in enumerate(p)) / n
        for b in range(15):
            if b / 15 < max(p) <= (b + 1) / 15:
                bins[b].append((max(p), guess == label))
    ece, table = 0.0, []
    for members in bins:
        table.append([0.0, 0.0, 0.0])
        if members:
            confidence, correct = (sum(column) / len(members) for column in zip(*members, strict=True))
            ece += len(members) / n * abs(correct - confidence)
            table[-1] = [len(members), confidence, correct]
    return {
        "accuracy": sum(right) / n,
        "nll": nll,
        "ece": ece,
        "brier": brier,
        "balanced_accuracy": balanced_accuracy_score(y, guesses),
        "macro_f1": f1_score(y, guesses, average="macro"),
        "majority_rate": max(map(len, per_class.values())) / n,
        "most_frequent": max(map(guesses.count, range(classes))) / n,
        "per_class_accuracy": [sum(hits) / len(hits) if hits else math.nan for hits in per_class.values()],
        "reliability": table,
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn, of absent classes
@pytest.mark.parametrize("n", [1, 7, 200])
def test_matches_loops(n):
    logits, y = sample(n)
    result, expected = classification_metrics(logits, y, 4), reference(logits, y, 4)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


def test_values_are_plain_python_and_absent_classes_are_nan():
    logits, y = sample(50, 4)
    logits, y = logits[y != 2], y[y != 2]
    result = classification_metrics(logits, y, 4)
    per_class, bins = result.pop("per_class_accuracy"), result.pop("reliability")
    assert [math.isnan(value) for value in per_class] == [False, False, True, False]
    assert all(type(value) is float for value in [*per_class, *(v for row in bins for v in row), *result.values()])


def test_perfect_and_useless_predictions():
    y = torch.arange(4)
    perfect = classification_metrics(torch.eye(4) * 1e3, y, 4)
    assert (perfect["accuracy"], perfect["nll"], perfect["brier"], perfect["ece"]) == (1.0, 0.0, 0.0, 0.0)
    wrong = classification_metrics((torch.eye(4) * 1e3).roll(1, 0), y, 4)
    assert (wrong["accuracy"], wrong["brier"], wrong["ece"], wrong["nll"]) == (0.0, 2.0, 1.0, 1e3)
    uniform = classification_metrics(torch.zeros(4, 4), y, 4)
    assert uniform["nll"] == pytest.approx(math.log(4))
    assert uniform["brier"] == pytest.approx(0.75)
    assert uniform["ece"] == pytest.approx(0.0)


@pytest.mark.parametrize(("confidence", "accuracy", "ece"), [(0.8, 0.8, 0.0), (0.8, 0.5, 0.3), (1.0, 0.6, 0.4)])
def test_known_calibration_errors(confidence, accuracy, ece):
    correct = torch.arange(10) < accuracy * 10
    value = expected_calibration_error(torch.full((10,), confidence, dtype=torch.float64), correct)
    assert value == pytest.approx(ece)


def test_gaps_of_opposite_sign_cancel_within_a_bin_only():
    correct = torch.tensor([True, False])
    assert expected_calibration_error(torch.tensor([0.50, 0.50]), correct) == pytest.approx(0.0)
    assert expected_calibration_error(torch.tensor([0.50, 0.55]), correct) == pytest.approx((0.5 + 0.55) / 2)


def test_a_bin_includes_its_upper_edge():
    # Edges at 0.5 with two bins. (0, 0.5] holds the 0.5; were bins [lo, hi), the two samples would share a bin.
    confidence = torch.tensor([0.5, 0.75], dtype=torch.float64)
    correct = torch.tensor([True, False])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((0.5 + 0.75) / 2)
    confidence[0] = 0.5 + 1e-9
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((0.75 - 0.5) / 2)


def test_confusion_matrix_matches_loops():
    logits, y = sample(100, 5, seed=1)
    predictions = logits.argmax(1)
    expected = torch.zeros(6, 6, dtype=torch.long)
    for guess, truth in zip(predictions.tolist(), y.tolist(), strict=True):
        expected[truth, guess] += 1
    result = confusion_matrix(predictions, y, 6)
    assert result.dtype == torch.long
    assert torch.equal(result, expected)
    assert not torch.equal(result, expected.T)  # so a swap of rows and columns would be seen
    assert torch.equal(confusion_matrix(y[:0], y[:0], 3), torch.zeros(3, 3, dtype=torch.long))


def test_half_precision_logits_count_like_float():
    logits, y = sample()
    logits = logits.bfloat16()
    np.testing.assert_equal(classification_metrics(logits, y, 4), classification_metrics(logits.float(), y, 4))


def test_logits_that_carry_a_graph_do_not_warn():
    logits, y = sample()
    classification_metrics(logits.requires_grad_(), y, 4)


def test_mistakes_are_named():
    logits, y = sample(10)
    with pytest.raises(SemisupError, match=r"logits must be \(N, 5\) with N >= 1, got shape \(10, 4\)"):
        classification_metrics(logits, y, 5)
    with pytest.raises(SemisupError, match="N >= 1"):
        classification_metrics(logits[:0], y[:0], 4)
    with pytest.raises(SemisupError, match=r"must both be \(N,\), got shapes \(10,\) and \(9,\)"):
        classification_metrics(logits, y[:9], 4)
    with pytest.raises(SemisupError, match=r"y must lie in \[0, 4\), got values from -1 to"):
        classification_metrics(logits, torch.cat([y[:9], torch.tensor([-1])]), 4)
    with pytest.raises(SemisupError, match=r"predictions must lie in \[0, 2\)"):
        confusion_matrix(torch.tensor([2]), torch.tensor([1]), 2)
    logits[3, 1] = math.nan
    with pytest.raises(SemisupError, match="finite"):
        classification_metrics(logits, y, 4)
    with pytest.raises(SemisupError, match="N >= 1"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize(
    ("recalls", "most_frequent", "majority", "collapsed"),
    [
        ([1.0, 0.0], 1.0, 0.69, True),  # 69:31, only the large class: accuracy 0.69
        ([0.0, 1.0], 1.0, 0.69, True),
        ([0.95, 0.3], 0.86, 0.69, False),  # accuracy 0.75 of a hard set
        ([0.6, 0.5], 0.57, 0.69, False),  # accuracy below the majority's, yet both are found
        ([0.98] + [0.01] * 9, 0.95, 0.1, True),
        ([0.1] * 10, 0.2, 0.1, False),  # guessing
        ([0.9, 0.9] + [0.0] * 8, 0.5, 0.1, False),  # two classes of ten
        ([0.98] + [0.01] * 9, None, None, True),  # a run of before the share was kept
        ([0.5, 0.4] + [0.3] * 8, None, None, False),
        ([1.0, None], 1.0, 1.0, False),  # a test set of one class says nothing
        ([], None, None, False),
    ],
)
def test_collapse_is_one_class_for_all_and_no_low_accuracy(recalls, most_frequent, majority, collapsed):
    assert predictions_collapsed(recalls, most_frequent, majority) is collapsed
