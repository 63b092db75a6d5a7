"""Relabeling by any stage that predicts, and the choice among several by labels that a run was not given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semisup.data import draw_budget
from semisup.errors import SemisupError
from semisup.evaluate import fit_probe
from semisup.graph import nearest
from semisup.stages.choice import best_of, folds_of
from semisup.stages.kinds import propagate
from semisup.stages.targets import read_targets
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

ENCODER = {"encoder": train_stage("simclr", stage={"ema": None}), "features": {"kind": "features", "of": "encoder"}}


def best(*teachers: str, **options: Any) -> dict[str, Any]:
    return {"kind": "relabel", "teacher": list(teachers), "vote": "best", **options}


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_labels_images_as_its_regression_does(classes: int, tmp_path: Path) -> None:
    data = small_data(classes=classes)
    stages = {
        **ENCODER,
        "probe": {"kind": "probe", "of": "features"},
        "labels": {"kind": "relabel", "teacher": "probe"},
    }
    done = run_stages(stages, data, tmp_path)
    index = draw_budget(data.y_train, "2/class", 0, classes).index
    features = torch.from_numpy(np.load(done["features"].folder / "train.npy").astype(np.float32))
    probe = fit_probe(features[index], torch.from_numpy(data.y_train[index]), 0)
    _, targets = read_targets(done["labels"])
    assert torch.allclose(targets, probe.logits(features, classes).exp().float(), atol=1e-5)


def test_the_best_teacher_is_that_of_the_labels_it_was_not_given(tmp_path: Path) -> None:
    """A classifier that learned nothing beside a probe that tells brightness: the numbers say so, and it is chosen."""
    stages = {
        **ENCODER,
        "idle": train_stage("supervised", stage={"optimizer": {"lr": 1e-9}, "steps": 1, "ema": None}),
        "probe": {"kind": "probe", "of": "features"},
        "labels": best("idle", "probe", folds=2),
    }
    data = small_data()
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "4/class", 0, 3))
    metrics = done["labels"].metrics
    assert metrics["choice/probe"] > metrics["choice/idle"]
    assert metrics["choice/chosen"] == 1
    assert metrics["test/accuracy"] == done["probe"].metrics["test/accuracy"]
    assert sorted(path.name for path in done["labels"].folder.iterdir()) == [
        "confusion.png",
        "stage.json",
        "targets.safetensors",
    ]


ASKED = torch.tensor([0, 1, 1])
HALVES = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4]])
SURER = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
WRONGLY = torch.tensor([[0.6, 0.4], [0.4, 0.6], [1.0, 0.0]])
RIGHT = torch.tensor([[0.51, 0.49], [0.49, 0.51], [0.49, 0.51]])


def chosen(asked: torch.Tensor, **said: torch.Tensor) -> str:
    """By one parting of the labels."""
    return best_of(asked, {name: probs[:, None] for name, probs in said.items()}).taken


def test_of_those_that_are_right_equally_often_the_surer_of_what_is_right_is_taken() -> None:
    assert chosen(ASKED, halves=HALVES, surer=SURER, wrongly=WRONGLY) == "surer"
    assert chosen(ASKED, wrongly=WRONGLY, halves=HALVES) == "halves"
    assert chosen(ASKED, halves=HALVES, same=HALVES.clone()) == "halves", "then the first"
    choice = best_of(ASKED, {"surer": SURER[:, None], "right": RIGHT[:, None]})
    assert choice.taken == "right", "hits come first"
    assert choice.accuracy == {"surer": pytest.approx(2 / 3), "right": 1}
    assert choice.error == {"surer": pytest.approx(0.76 / 3), "right": pytest.approx(2 * 0.49**2)}


def test_one_hit_more_is_not_believed_of_probabilities_that_are_clearly_worse() -> None:
    """The labels alone are unsure where they are wrong; the other is sure of everything, and wrong nearly as often."""
    asked = torch.zeros(20, dtype=torch.long)
    alone = torch.tensor([[0.55, 0.45]] * 10 + [[0.45, 0.55]] * 10)
    sure = torch.tensor([[1.0, 0.0]] * 11 + [[0.0, 1.0]] * 9)
    assert chosen(asked, alone=alone, sure=sure) == "alone"
    assert chosen(asked, alone=alone, sure=sure.clamp(0.3, 0.7)) == "sure", "no worse than a standard error"


def test_labels_that_are_asked_for_again_count_once() -> None:
    """What is a standard error above the least by 40 labels is not by 20 that are asked for twice."""
    asked = torch.zeros(20, dtype=torch.long)
    alone = torch.tensor([[0.55, 0.45]] * 10 + [[0.45, 0.55]] * 10)
    close = torch.tensor([[0.75, 0.25]] * 11 + [[0.25, 0.75]] * 9)
    assert chosen(asked, alone=alone, close=close) == "close"
    assert chosen(asked.repeat(2), alone=alone.repeat(2, 1), close=close.repeat(2, 1)) == "alone"
    twice = {"alone": alone[:, None].repeat(1, 2, 1), "close": close[:, None].repeat(1, 2, 1)}
    assert best_of(asked, twice).taken == "close"


def test_a_plan_says_how_often_teachers_run_for_the_choice() -> None:
    stages = {**ENCODER, "probe": {"kind": "probe", "of": "features"}, "labels": best("probe", folds=2, repeats=3)}
    *others, labels = small_plan(stages, small_data())[0].stages
    assert labels.choice is not None and "runs probe up to 6 times more" in labels.choice
    assert [one.choice for one in others] == [None] * len(others)


def test_labels_may_be_parted_more_than_once(tmp_path: Path) -> None:
    """Twelve labels of noise in five partings: a guess for each in each, and another share is right than in one."""
    data = small_data()
    data.y_train[:] = np.random.default_rng(0).permutation(data.y_train)
    stages = {**ENCODER, "spread": {"kind": "propagate", "teacher": "features", "neighbors": 3}}
    found = []
    for repeats in (1, 5):
        labels = {"labels": best("spread", folds=2, repeats=repeats)}
        done = run_stages(stages | labels, data, tmp_path / str(repeats), draw_budget(data.y_train, "4/class", 0, 3))
        found.append(done["labels"].metrics["choice/spread"])
        assert found[-1] * 12 * repeats == pytest.approx(round(found[-1] * 12 * repeats))
    assert found[0] != found[1]


def test_no_run_of_the_choice_is_given_the_label_it_is_asked(tmp_path: Path) -> None:
    """Labels that are noise: a stage that was given them all keeps them, one that was not cannot know them."""
    data = small_data()
    rng = np.random.default_rng(0)
    data.y_train[:] = rng.permutation(data.y_train)
    stages = {
        **ENCODER,
        "spread": {"kind": "propagate", "teacher": "features", "neighbors": 3},
        "again": {"kind": "relabel", "teacher": "spread"},
        "labels": best("again", folds=5),
    }
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "all", 0, 3))
    assert done["labels"].metrics["choice/again"] < 0.6


@pytest.mark.parametrize(("large", "share"), [(9, 9 / 12), (10, 0.5)])
def test_where_classes_differ_by_more_than_3_times_each_counts_alike(large: int, share: float) -> None:
    """All of the large class are right and none of the small one, in accuracy and in squared error."""
    asked = torch.tensor([0] * large + [1] * 3)
    always = torch.tensor([[1.0, 0.0, 0.0]]).repeat(large + 3, 1)
    choice = best_of(asked, {"always": always[:, None], "again": always[:, None]})
    assert choice.accuracy["always"] == pytest.approx(share)
    assert choice.error["always"] == pytest.approx(2 * (1 - share))


def test_a_rare_class_can_count_out_who_is_surely_wrong_about_it() -> None:
    """Over all labels `large` has the least error; over classes `fair` has."""
    asked = torch.tensor([0] * 40 + [1] * 10)
    large = torch.tensor([[1.0, 0.0]] * 40 + [[1.0, 0.0]] * 10)
    fair = torch.tensor([[0.52, 0.48]] * 40 + [[0.48, 0.52]] * 9 + [[0.52, 0.48]])
    assert chosen(asked, large=large, fair=fair) == "fair"


def test_folds_part_every_class_evenly() -> None:
    data = small_data()
    budget = draw_budget(data.y_train, "4/class", 0, 3)
    parts = list(folds_of(budget, data.y_train, 4, seed=0))
    assert sorted(np.concatenate(parts).tolist()) == budget.index.tolist()
    assert all(sorted(data.y_train[part]) == [0, 1, 2] for part in parts)


def test_a_single_label_of_each_class_cannot_choose() -> None:
    data = small_data()
    with pytest.raises(SemisupError, match="no class has two"):
        list(folds_of(draw_budget(data.y_train, "1/class", 0, 3), data.y_train, 2, seed=0))


def test_an_encoder_predicts_nothing() -> None:
    with pytest.raises(SemisupError, match="cannot predict"):
        small_plan({**ENCODER, "labels": best("encoder")}, small_data())
    with pytest.raises(SemisupError, match="stage is needed"):
        small_plan({**ENCODER, "labels": best("features")}, small_data())


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many neighbors each search for them was asked for, in a process that remembers none."""
    found: list[int] = []

    def counting(features: torch.Tensor, neighbors: int, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(neighbors)
        return nearest(features, neighbors, *given)

    monkeypatch.setattr("semisup.graph.nearest", counting)
    monkeypatch.setattr(propagate, "_kept", {})
    return found


def test_spreading_other_labels_searches_no_neighbors_again(searches: list[int], tmp_path: Path) -> None:
    spread = {"kind": "propagate", "teacher": "features"}
    stages = {
        **ENCODER,
        "few": {**spread, "neighbors": 3},
        "more": {**spread, "neighbors": 5},
        "labels": best("few", "more", folds=4),
    }
    data = small_data()
    budget = draw_budget(data.y_train, "4/class", 0, 3)
    remembered = run_stages(stages, data, tmp_path / "a", budget)
    assert sorted(searches) == [3, 3, 5, 5], "one for the spread, one for its four without a part of the labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagate, "KEPT", 0)
        forgotten = run_stages(stages, data, tmp_path / "b", budget)
    for name in ("few", "more", "labels"):
        assert remembered[name].metrics == forgotten[name].metrics
        for one, other in zip(read_targets(remembered[name]), read_targets(forgotten[name]), strict=True):
            assert torch.equal(one, other)


def test_the_features_of_another_network_are_searched_anew(searches: list[int], tmp_path: Path) -> None:
    stages = {
        "encoder": train_stage("simclr", stage={"ema": None}),
        "other": train_stage("simclr", temperature=0.1, stage={"ema": None}),
        "first": {"kind": "propagate", "teacher": "encoder", "neighbors": 3},
        "second": {"kind": "propagate", "teacher": "other", "neighbors": 3},
        "third": {"kind": "propagate", "teacher": "encoder", "neighbors": 3, "alpha": 0.5},
    }
    done = run_stages(stages, small_data(), tmp_path)
    assert searches == [3, 3]
    pools = [read_targets(done[name])[0] for name in ("first", "second")]
    assert not torch.equal(*pools)
