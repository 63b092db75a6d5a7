"""scikit-learn's methods see the labels of the draw and no others, and answer as scikit-learn does."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelSpreading

from semisup.bench.suites.baselines import (
    BASELINES,
    MAX_UNLABELED,
    READ_UNLABELED,
    check_baseline,
    choose_unlabeled,
    fit_baseline,
)
from semisup.errors import SemisupError

Arrays = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]


@pytest.fixture
def blobs() -> Arrays:
    """Labeled points with classes, unlabeled points and queries, in three blobs in 5 dimensions."""
    draw = np.random.RandomState(0)
    centers = draw.randn(3, 5) * 4
    y = np.repeat(np.arange(3), 4)
    return centers[y] + draw.randn(12, 5), y, centers[np.arange(60) % 3] + draw.randn(60, 5), centers + 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_finds_the_blobs(name: str, blobs: Arrays) -> None:
    labeled, y, unlabeled, queries = blobs
    probs, again = fit_baseline({"name": name}, labeled, y, unlabeled, [queries, queries[:1]], 4)
    assert probs.shape == (3, 4) and again.shape == (1, 4)
    np.testing.assert_allclose(probs.sum(1), 1)
    assert probs.argmax(1).tolist() == [0, 1, 2]
    assert (probs[:, 3] == 0).all(), "a class without a label"
    np.testing.assert_array_equal(probs[:1], again)


def test_the_predictions_are_scikit_learns(blobs: Arrays) -> None:
    labeled, y, unlabeled, queries = blobs
    scaler = StandardScaler().fit(np.concatenate([labeled, unlabeled]))
    x, u, q = (scaler.transform(part) for part in (labeled, unlabeled, queries))
    (probs,) = fit_baseline({"name": "logistic_regression", "C": 0.1}, labeled, y, unlabeled, [queries], 3)
    np.testing.assert_allclose(probs, LogisticRegression(C=0.1, max_iter=1000).fit(x, y).predict_proba(q))
    model = LabelSpreading(kernel="knn", n_neighbors=30, alpha=0.5, max_iter=100)
    with np.errstate(invalid="ignore"):
        model.fit(np.concatenate([x, u]), np.concatenate([y, np.full(60, -1)]))
    spreading = {"name": "label_spreading", "neighbors": 30, "alpha": 0.5}
    (probs,) = fit_baseline(spreading, labeled, y, unlabeled, [queries], 3)
    np.testing.assert_allclose(probs, model.predict_proba(q))


def test_unlabeled_images_matter_only_to_those_who_read_them(blobs: Arrays) -> None:
    labeled, y, unlabeled, queries = blobs
    mirrored = 2 * unlabeled.mean(0) - unlabeled  # other points with the same mean and std
    for name in BASELINES:
        first, second = (
            fit_baseline({"name": name}, labeled, y, u, [queries * 0.3], 3)[0] for u in (unlabeled, mirrored)
        )
        assert np.allclose(first, second) is not (name in READ_UNLABELED), name


def test_a_point_that_no_label_reaches_gets_the_uniform_answer() -> None:
    labeled = np.array([[0.0], [1.0], [2.0], [0.5], [1.5], [2.5]])
    unlabeled = np.linspace(100, 101, 30)[:, None]
    spreading = {"name": "label_spreading", "neighbors": 3}
    (probs,) = fit_baseline(spreading, labeled, np.array([0, 0, 0, 1, 1, 1]), unlabeled, [np.array([[100.5]])], 2)
    np.testing.assert_allclose(probs, [[0.5, 0.5]])


def test_the_choice_of_unlabeled_images_is_seeded_and_bounded() -> None:
    rows = np.arange(5, 5 + 2 * MAX_UNLABELED)
    chosen = choose_unlabeled(rows, 1)
    assert len(chosen) == len(set(chosen)) == MAX_UNLABELED and (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, choose_unlabeled(rows, 1)) and not np.array_equal(chosen, choose_unlabeled(rows, 2))
    assert choose_unlabeled(rows[:7], 0).tolist() == rows[:7].tolist()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("labels", "unlabeled"),
    [
        ([0, 0, 1, 1, 2, 2], 0),  # all labels: nothing is unlabeled
        ([0, 1, 2], 0),
        ([0, 1, 2], 2),  # fewer images than neighbors
        ([1, 1, 1], 4),  # one class
        ([2], 0),
    ],
)
def test_budgets_at_the_edge_have_an_answer(name: str, labels: list[int], unlabeled: int) -> None:
    y = np.array(labels)
    points = np.eye(3)[y] * 5 + np.random.RandomState(0).randn(len(y), 3)
    others = np.eye(3)[np.arange(unlabeled) % 3] * 5
    (probs,) = fit_baseline({"name": name}, points, y, others, [np.eye(3) * 5], 4)
    np.testing.assert_allclose(probs.sum(1), 1)
    assert (probs[:, [c for c in range(4) if c not in labels]] < 1 / 3).all()
    if len(set(labels)) == 3 and not unlabeled and name != "label_spreading":  # to which all of six are neighbors
        assert probs.argmax(1).tolist() == [0, 1, 2]


def test_without_a_test_set_nothing_is_asked() -> None:
    assert fit_baseline({"name": "label_spreading"}, np.eye(2), np.array([0, 1]), np.ones((3, 2)), [], 2) == []


def test_what_scikit_learn_refuses_is_said_in_words() -> None:
    wrong = {"name": "self_training", "threshold": 7.0}
    with pytest.raises(SemisupError, match=r"baseline self_training: .*threshold"):
        fit_baseline(wrong, np.eye(2), np.array([0, 1]), np.ones((3, 2)), [], 2)


def test_mistakes_name_key_and_rule() -> None:
    assert check_baseline({}, "a") == ["a.name: missing"]
    assert check_baseline({"name": "self_training", "treshold": 0.5}, "a") == [
        "a.treshold: unknown key; did you mean 'threshold'?"
    ]
    assert check_baseline({"name": "self_training", "threshold": True}, "a") == [
        "a.threshold: must be a number, not true"
    ]
    assert check_baseline({"name": "label_spreading", "neighbors": 3, "alpha": 0.5}, "a") == []
