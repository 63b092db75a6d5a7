"""A head on cached features: its loss by hand, its self-training, and the stage that relabel asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.data import draw_budget
from semisup.errors import SemisupError
from semisup.models import load_weights
from semisup.stages.cache import stored_views
from semisup.stages.head import HeadSettings, build_head, fit_head
from semisup.stages.targets import read_targets
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

SETTINGS = HeadSettings(
    hidden=0, dropout=0.0, steps=1, lr=0.1, weight_decay=0.0, threshold=None, labeled=6, unlabeled=40
)


def clusters(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clusters of features with a gap between them, which one label of each hardly shows."""
    y = torch.arange(n) % 2
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(0)) + 1.5 * y[:, None], y


def test_one_step_is_the_gradient_of_the_cross_entropy() -> None:
    """AdamW's first step moves every weight by the learning rate against the sign of its gradient."""
    x, y = clusters(6)
    before = fit_head(x, y, x, 2, replace(SETTINGS, lr=1e-12), seed=3)
    after = fit_head(x, y, x, 2, SETTINGS, seed=3)
    torch.manual_seed(3)
    same = build_head(8, 2, 0, 0.0)
    rows = torch.randint(6, (6,))
    same[-1].load_state_dict(before[-1].state_dict())
    standardized = (x - x.mean(0)) / (x.var(0, unbiased=True) + 1e-5).sqrt()
    F.cross_entropy(same[-1](standardized[rows]), y[rows]).backward()
    moved = (after[-1].weight - before[-1].weight).detach()
    assert torch.allclose(moved, -0.1 * same[-1].weight.grad.sign(), atol=1e-4)


def test_self_training_learns_from_features_without_labels() -> None:
    """Over three pairs of labels: the guesses find the gap between the clusters, which the labels alone miss."""
    x, y = clusters()
    settings = replace(SETTINGS, dropout=0.3, steps=100, lr=1e-2, unlabeled=100)
    right = {None: 0.0, 0.6: 0.0}
    for threshold in right:
        for i in (0, 2, 4):
            head = fit_head(x[i : i + 2], y[i : i + 2], x, 2, replace(settings, threshold=threshold), seed=0)
            right[threshold] += float((head(x).argmax(1) == y).float().mean()) / 3
    assert right[0.6] > right[None] + 0.02


def test_a_guess_of_the_image_is_learned_on_a_view_of_it() -> None:
    """Labels tell one direction of two apart, views add the other: who learned on them can tell by that one alone."""
    y = torch.arange(200) % 2
    sign = 2.0 * y[:, None] - 1
    noise = torch.randn(4, 200, 2, generator=torch.Generator().manual_seed(0))
    clean = torch.cat([3 * sign, torch.zeros(200, 1)], 1) + 0.1 * noise[0]
    views = torch.stack([torch.cat([torch.zeros(200, 1), 0.1 * sign], 1) + 0.01 * each for each in noise[1:]])
    settings = replace(SETTINGS, threshold=0.6, steps=100, lr=5e-2, unlabeled=50)
    right = []
    for given in (None, views):
        head = fit_head(clean[:10], y[:10], clean, 2, settings, 0, given)
        right.append(float((head(views[0]).argmax(1) == y).float().mean()))
    assert right[1] > 0.95 > right[0]


def test_it_repeats_and_leaves_the_global_generator_alone() -> None:
    x, y = clusters(20)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    heads = [fit_head(x, y, x, 2, replace(SETTINGS, threshold=0.5, dropout=0.5), seed=1) for _ in range(2)]
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(heads[0].parameters(), heads[1].parameters(), strict=True))


def test_relabel_asks_a_head(tmp_path: Path) -> None:
    data = small_data()
    stages: dict[str, Any] = {
        "encoder": train_stage("simclr", stage={"ema": None}),
        "features": {"kind": "features", "of": "encoder"},
        "head": {"kind": "head", "of": "features", "steps": 60, "lr": 1e-2, "hidden": 8},
        "labels": {"kind": "relabel", "teacher": "head"},
    }
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "6/class", 0, 3))
    assert done["head"].metrics["test/accuracy"] > 0.6
    _, targets = read_targets(done["labels"])
    assert float((targets.argmax(1).numpy() == data.y_train).mean()) > 0.6
    assert np.allclose(targets.sum(1), 1, atol=1e-5)


def test_a_features_stage_stores_views_for_it(tmp_path: Path) -> None:
    data = small_data()
    viewless = {"kind": "features", "of": "encoder"}
    features = {**viewless, "views": 2, "view": {"policy": "weak"}}
    head = {"kind": "head", "of": "features", "steps": 20, "lr": 1e-2, "threshold": 0.4}
    stages = {"encoder": train_stage("simclr", stage={"ema": None}), "features": features, "head": head}
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "6/class", 0, 3))
    folder = done["features"].folder
    views = stored_views(folder)
    assert views is not None and views.shape == (2, *np.load(folder / "train.npy").shape)
    assert not torch.equal(views[0], views[1]) and not np.array_equal(views[0], np.load(folder / "train.npy"))
    assert {"view0.npy", "view1.npy"} <= set(done["features"].record["files"])
    plain = run_stages(stages | {"features": viewless}, data, tmp_path / "plain")
    heads = [load_weights(found["head"].folder / "head.safetensors") for found in (done, plain)]
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert stored_views(plain["features"].folder) is None


def test_a_view_needs_a_policy_that_there_is() -> None:
    stages = {
        "encoder": train_stage("simclr"),
        "features": {"kind": "features", "of": "encoder", "views": 1, "view": {"policy": "wek"}},
    }
    with pytest.raises(SemisupError, match=r"stages.features.view.policy: .*'wek'; did you mean 'weak'"):
        small_plan(stages, small_data())


def test_a_head_needs_features() -> None:
    with pytest.raises(SemisupError, match="of: missing"):
        small_plan({"head": {"kind": "head"}}, small_data())
