"""Strategies, by hand and on blobs whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from semisup.data.near import groups, thumbnails, without_copies
from semisup.labeling.strategies import (
    coverage,
    disagreement,
    entropy,
    margin,
    typical,
    uncertain_and_different,
)

PROBS = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.4, 0.35, 0.25]])
NONE = np.empty(0, np.int64)


def blobs(sizes: tuple[int, ...] = (40, 30, 20), spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Points around the axes, and their blobs."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.eye(len(sizes))[k] + spread * rng.normal(size=(n, len(sizes))) for k, n in enumerate(sizes)])
    return x.astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


def test_scores_of_predictions() -> None:
    assert margin(PROBS) == pytest.approx([1.0, 0.0, 0.95])
    assert entropy(PROBS) == pytest.approx([np.log(2), 0, -(np.array(PROBS[2]) * np.log(PROBS[2])).sum()])


def test_members_that_agree_do_not_disagree() -> None:
    assert disagreement([PROBS, PROBS]) == pytest.approx([0, 0, 0])
    sure, opposite = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert disagreement([sure, opposite]) == pytest.approx([np.log(2)])


@pytest.mark.parametrize("strategy", [typical, coverage])
def test_each_blob_gets_a_label_first(strategy: object) -> None:
    x, blob = blobs()
    order = list(strategy(x, NONE, 3, 0))  # type: ignore[operator]
    assert set(blob[order[:3]]) == {0, 1, 2}
    assert sorted(order) == list(range(len(x))), "every row comes once"


@pytest.mark.parametrize("strategy", [typical, coverage])
def test_blobs_with_labels_come_later(strategy: object) -> None:
    x, blob = blobs()
    labeled = np.array([0, 45])  # of blobs 0 and 1
    order = list(strategy(x, labeled, 1, 0))  # type: ignore[operator]
    assert blob[order[0]] == 2
    assert not set(order) & {0, 45}


def test_typical_ones_lie_where_there_are_many() -> None:
    x, blob = blobs((60,), spread=0.3)
    x = np.concatenate([x, np.ones((60, 1), np.float32)], axis=1)
    first = next(typical(x, NONE, 1, 0))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit, axis=2)
    assert first == np.sort(distances, axis=1)[:, :21].sum(1).argmin()
    assert blob[first] == 0


def test_uncertain_ones_are_of_different_clusters() -> None:
    x, blob = blobs((6, 6, 6))
    score = np.linspace(1, 0.5, 18)  # the most uncertain are all of the first blob
    order = list(uncertain_and_different(x, NONE, 3, 0, score))
    assert set(blob[order[:3]]) == {0, 1, 2} and order[0] == 0
    assert sorted(order) == list(range(18))


def test_a_brighter_smaller_copy_is_the_same_picture() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (5, 16, 16, 3), np.uint8)
    images[3] = images[1] // 2 + 30
    images[4] = 7  # one color: near nothing
    assert groups(thumbnails(images)) == [[1, 3]]
    assert groups(thumbnails(images.repeat(3, 1).repeat(3, 2))) == [[1, 3]]
    assert groups(thumbnails(images[:3])) == []


def test_copies_are_passed_over() -> None:
    small = np.eye(4, dtype=np.float32)[[0, 1, 1, 2, 0, 3]]
    assert without_copies([1, 2, 3, 4, 5], small, np.array([0]), 3) == ([1, 3, 5], 2)
    assert without_copies([4], small, NONE, 3) == ([4], 0)
