"""Strong views of gray images: what comes into the frame has the background's color."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from semisup.augment import build_policy
from semisup.augment.policies.ctaugment import OPERATIONS
from semisup.augment.policies.views import GRAY_POOL
from semisup.config import parse_recipe
from semisup.data import ImageData, load_data
from semisup.pipeline import make_plan
from semisup.settings import DataConfig
from semisup.stages.views import stage_policies

RECIPE = {
    "name": "gray",
    "device": "cpu",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 3},
    "stages": {"train": {"method": {"name": "fixmatch"}, "steps": 1, "batch": {"labeled": 4, "unlabeled": 4}}},
}


def photographs(level: int, channels: int = 1) -> ImageData:
    """Forty images of one level with a darker middle."""
    images = np.full((40, 8, 8, channels), level, np.uint8)
    images[:, 2:6, 2:6] //= 2
    y = np.arange(40) % 2
    return dataclasses.replace(load_data(DataConfig()), x_train=images, y_train=y, classes=["a", "b"])


def settings(data: ImageData, *overrides: str) -> dict[str, object]:
    (stage,) = make_plan(parse_recipe(RECIPE, overrides), data, trial=False).stages
    return stage.config.view_settings


def test_black_backgrounds_change_nothing() -> None:
    data = load_data(DataConfig())
    assert data.background == 0.0 and settings(data) == {}
    assert photographs(150, 3).background == 0.0 and settings(photographs(150, 3)) == {}


def test_other_backgrounds_are_filled_with() -> None:
    data = photographs(153)
    assert data.background == 0.6
    strong = settings(data)["strong"]
    assert isinstance(strong, dict) and strong["fill"] == 0.6
    assert set(strong["pool"]) - set(GRAY_POOL) == {"solarize"} and "color" not in strong["pool"]
    assert settings(photographs(20))["strong"] == {"policy": "randaugment", "fill": 0.08}
    given = settings(data, "stages.train.augment={strong: {policy: randaugment, fill: 0.2, pool: [rotate]}}")
    assert given["strong"] == {"policy": "randaugment", "fill": 0.2, "pool": ["rotate"]}


def test_ctaugment_and_its_probe_follow_the_background_too() -> None:
    remixmatch = ["stages.train.method={name: remixmatch, ctaugment: true}"]
    data, plain = photographs(153), torch.full((40, 1, 8, 8), 153 / 255)
    (stage,) = make_plan(parse_recipe(RECIPE, remixmatch), data, trial=False).stages
    found = stage.config.view_settings
    assert {view["fill"] for view in found.values() if view["policy"].startswith("ctaugment")} == {0.6}
    assert all(set(OPERATIONS) - set(view["pool"]) == {"color"} for view in found.values() if "pool" in view)
    for name in ("ctaugment", "ctaugment_cutout", "ctaugment_probe"):
        policy = build_policy(name, {"pool": ["rotate", "translate_x", "cutout"], "fill": 0.6}, flip=False)
        assert policy(plain, torch.Generator().manual_seed(0)).min() > 0.59


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_no_black_comes_into_the_frame(policy: str) -> None:
    overrides = [f"stages.train.augment={{strong: {{policy: {policy}}}}}"]
    if policy == "randaugment":
        overrides = ["stages.train.augment={strong: {policy: randaugment, pool: [rotate]}}"]
    (stage,) = make_plan(parse_recipe(RECIPE, overrides), photographs(153), trial=False).stages
    assert stage.views is not None
    make = stage_policies(stage.config.augment, stage.views, "unlabeled", flip=False, learned=None)["strong"]
    if policy == "trivialaugment":
        assert make.fill == 0.6  # type: ignore[union-attr]
        return
    plain = torch.full((40, 1, 8, 8), 153 / 255)
    assert make(plain, torch.Generator().manual_seed(0)).min() > 0.59  # type: ignore[operator]
