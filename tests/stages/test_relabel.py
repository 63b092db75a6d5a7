"""Pseudo-labels of a relabel stage: filter, balance and ensemble, against the words of the Noisy Student paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from semisup.augment import Normalize, build_policy
from semisup.engine import Batches, generator
from semisup.errors import SemisupError
from semisup.stages import load_predictor
from semisup.stages.targets import read_targets, select, training_images
from tests.stages.stages_small import CPU, run_stages, small_data, small_plan, train_stage

# Guessed class and confidence of ten images: five of class 0, three of class 1, two of class 2, none of class 3.
GUESSES = [(0, 0.9), (1, 0.5), (0, 0.6), (2, 0.7), (0, 0.8), (1, 0.95), (0, 0.55), (2, 0.45), (1, 0.85), (0, 0.99)]


def probabilities() -> torch.Tensor:
    rows = []
    for label, confidence in GUESSES:
        row = torch.full((4,), (1 - confidence) / 3)
        row[label] = confidence
        rows.append(row)
    return torch.stack(rows)


def chosen(**options: Any) -> tuple[list[int], torch.Tensor]:
    pool, targets = select(probabilities(), generator(0), **options)
    return pool.tolist(), targets


def per_class(pool: list[int]) -> dict[int, int]:
    return dict(Counter(GUESSES[row][0] for row in pool))


def test_by_default_every_image_is_kept_once_with_its_probabilities() -> None:
    pool, targets = chosen()
    assert sorted(pool) == list(range(10))
    assert torch.equal(targets, probabilities())


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.86, 0.99])
def test_the_threshold_keeps_what_reaches_it(threshold: float) -> None:
    exact = probabilities().amax(1)
    assert sorted(chosen(threshold=threshold)[0]) == [i for i in range(10) if exact[i] >= threshold]


def test_a_confidence_equal_to_the_threshold_is_kept() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    assert select(probs, generator(0), threshold=0.75)[0].tolist() == [0]


@pytest.mark.parametrize("per", [1, 2, 4, 50])
def test_per_class_keeps_the_most_confident(per: int) -> None:
    pool, _ = chosen(per_class=per)
    for label in range(3):
        ranked = sorted((i for i in range(10) if GUESSES[i][0] == label), key=lambda i: -GUESSES[i][1])
        assert sorted(i for i in pool if GUESSES[i][0] == label) == sorted(ranked[:per])


@pytest.mark.parametrize(("options", "goal"), [({}, 5), ({"per_class": 4}, 4), ({"per_class": 7}, 7)])
def test_balance_repeats_images_evenly(options: dict[str, int], goal: int) -> None:
    pool, _ = chosen(balance=True, **options)
    assert per_class(pool) == {0: goal, 1: goal, 2: goal}  # nothing can be repeated for the empty class 3
    for label in range(3):
        times = Counter(row for row in pool if GUESSES[row][0] == label).values()
        assert max(times) - min(times) <= 1


def test_the_remainder_of_the_balance_is_drawn_from_the_given_generator() -> None:
    options: dict[str, Any] = {"balance": True, "per_class": 7}
    draws = [select(probabilities(), generator(seed), **options)[0].tolist() for seed in (1, 1, 2, 3, 4)]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) > 1


def test_hard_targets_are_one_hot_guesses() -> None:
    _, targets = chosen(soft=False)
    assert targets.sum(1).tolist() == [1.0] * 10
    assert targets.argmax(1).tolist() == [label for label, _ in GUESSES]
    assert set(targets.flatten().tolist()) == {0.0, 1.0}


def test_a_threshold_that_nothing_reaches_leaves_nothing() -> None:
    assert chosen(threshold=1.0)[0] == []
    assert chosen(threshold=1.0, balance=True)[0] == []


TEACHERS = {"a": train_stage("supervised"), "b": train_stage("supervised", stage={"steps": 6})}


def test_several_teachers_are_averaged(tmp_path: Path) -> None:
    data = small_data()
    done = run_stages(TEACHERS | {"labels": {"kind": "relabel", "teacher": ["a", "b"]}}, data, tmp_path)
    pool, targets = read_targets(done["labels"])
    answers = [torch.from_numpy(load_predictor(done[name].folder).predict(data.x_train)) for name in ("a", "b")]
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    torch.testing.assert_close(targets, (answers[0] + answers[1]) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert sorted(pool.tolist()) == list(range(len(data.x_train)))
    assert done["labels"].metrics["pseudo_labels/coverage"] == 1.0


def test_several_teachers_may_vote_by_their_labels(tmp_path: Path) -> None:
    stage = {"kind": "relabel", "teacher": ["a", "b"], "vote": "labels"}
    done = run_stages(TEACHERS | {"labels": stage}, small_data(), tmp_path)
    _, targets = read_targets(done["labels"])
    assert set(targets.unique().tolist()) <= {0.0, 0.5, 1.0}
    assert torch.allclose(targets.sum(1), torch.ones(len(targets)))


def test_no_confident_image_is_an_error_that_says_how_confident_they_are(tmp_path: Path) -> None:
    stages = {"a": TEACHERS["a"], "labels": {"kind": "relabel", "teacher": "a", "threshold": 1.0}}
    with pytest.raises(SemisupError, match=r"stages.labels.threshold: no image reaches 1; .* has 0\.\d\d\d"):
        run_stages(stages, small_data(), tmp_path)
    assert not (tmp_path / "labels" / "stage.json").exists()


def test_the_student_is_trained_on_the_chosen_images_alone(tmp_path: Path) -> None:
    data = small_data()
    stages = {
        "a": TEACHERS["a"],
        "labels": {"kind": "relabel", "teacher": "a", "per_class": 3},
        "student": train_stage("noisy_student", stage={"pseudo_labels": "labels"}),
    }
    done = run_stages(stages, data, tmp_path / "one")
    plan, budget = small_plan(stages, data)
    images = training_images(data, budget, done["labels"])
    pool, targets = read_targets(done["labels"])
    batches = Batches(
        images,
        labeled={},
        unlabeled={"strong": build_policy("none", {}, flip=False)},
        labeled_size=0,
        unlabeled_size=5,
        normalize=Normalize(*plan.statistics),
        device=CPU,
        key=(0,),
    )
    seen = torch.cat([batches(step).unlabeled.index for step in range(2 * len(pool))])
    assert set(seen.tolist()) == set(pool.tolist())
    batch = batches(0).unlabeled
    assert batch.target is not None
    assert torch.equal(batch.target, targets[batch.index])
