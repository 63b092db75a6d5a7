"""What a train stage ends with: the average's window, BatchNorm statistics, and what encoders are asked about."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from semisup.config import parse_recipe
from semisup.models import stage_decay
from semisup.pipeline import make_plan, run
from tests.pipeline.pipeline_small import SMALL


def trained(out: Path, method: str, **stage: Any) -> dict[str, np.ndarray]:
    """Weights of a stage of 20 steps."""
    recipe = copy.deepcopy(SMALL)
    settings = {"method": {"name": method}, "batch": {"labeled": 8, "unlabeled": 8}, "steps": 20, **stage}
    recipe |= {"model": {"name": "wrn", "depth": 10, "width": 1, "bn_momentum": 0.2}, "stages": {"train": settings}}
    run(parse_recipe(recipe), out=out / "run", quiet=True)
    return load_file(out / "run" / "train" / "model.safetensors")


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray], names: list[str]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in names)


@pytest.mark.parametrize(
    ("ema", "steps", "decay"), [("auto", 200, 0.95), ("auto", 5, 0.0), (0.9, 5, 0.9), (None, 5, None)]
)
def test_auto_looks_back_a_tenth_of_the_stage(ema: Any, steps: int, decay: float | None) -> None:
    assert stage_decay(ema, steps) == (None if decay is None else pytest.approx(decay))


def test_a_stage_of_20_steps_averages_its_last_two(tmp_path: Path) -> None:
    auto, half = (trained(tmp_path / str(ema), "supervised", ema=ema) for ema in ("auto", 0.5))
    assert same(auto, half, list(auto))


def test_refreshed_statistics_are_of_clean_images_and_repeat(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "supervised")
    first, second = (trained(tmp_path / name, "supervised", refresh_batchnorm=True) for name in ("a", "b"))
    statistics = [name for name in plain if name.endswith(("running_mean", "running_var"))]
    weights = [name for name in plain if name not in statistics and not name.endswith("num_batches_tracked")]
    assert same(first, second, list(first))
    assert same(first, plain, weights) and statistics
    assert not any(same(first, plain, [name]) for name in statistics)


def test_statistics_that_cannot_settle_are_estimated_anew() -> None:
    """Momentum 0.2 leaves 1% after 20 steps, 0.001 leaves 98%."""

    def resolved(momentum: float, **stage: Any) -> Any:
        recipe = copy.deepcopy(SMALL)
        train = {"method": {"name": "supervised"}, "steps": 20, **stage}
        recipe |= {
            "model": {"name": "wrn", "depth": 10, "width": 1, "bn_momentum": momentum},
            "stages": {"train": train},
        }
        return make_plan(parse_recipe(recipe), trial=False).stages[0]

    few, many = (resolved(momentum, refresh_batchnorm="auto") for momentum in (0.001, 0.2))
    assert few.config.refresh_batchnorm is True and many.config.refresh_batchnorm is False
    assert resolved(0.001).config.refresh_batchnorm is False
    assert resolved(0.2).fingerprint == many.fingerprint
    assert resolved(0.2, refresh_batchnorm=True).fingerprint != many.fingerprint


def means(out: Path, steps: int, pool: int | None, **stage: Any) -> np.ndarray:
    """Mean of the batches' statistics, of a network that stays as it began and sees images as they are."""
    still: dict[str, Any] = {"optimizer": {"lr": 1e-12}, "steps": steps, "batch": {"unlabeled": 8, "pool": pool}}
    views = {"first": {"policy": "none"}, "second": {"policy": "none"}}
    weights = trained(out / f"{steps}-{pool}-{len(stage)}", "simclr", augment=views, **still, **stage)
    name = next(name for name in weights if name.endswith("running_mean"))
    return weights[name] / (1 if stage else 1 - 0.8**steps)


def test_a_pool_is_all_that_is_trained_on(tmp_path: Path) -> None:
    """Of a pool of 8 every batch of 8 has the same images, and the same statistics."""
    np.testing.assert_allclose(means(tmp_path, 5, 8), means(tmp_path, 10, 8), rtol=1e-4, atol=1e-6)
    assert not np.allclose(means(tmp_path, 5, None), means(tmp_path, 10, None), rtol=1e-2)


def test_refreshed_statistics_are_of_the_pool(tmp_path: Path) -> None:
    refreshed = means(tmp_path, 5, 8, refresh_batchnorm=True)
    np.testing.assert_allclose(refreshed, means(tmp_path, 5, 8), rtol=1e-4, atol=1e-6)


def test_epochs_are_of_the_pool() -> None:
    recipe = copy.deepcopy(SMALL)
    train = {"method": {"name": "simclr"}, "batch": {"unlabeled": 8, "pool": 32}, "epochs": 3}
    plan = make_plan(parse_recipe({**recipe, "stages": {"train": train}}), trial=False)
    assert plan.stages[0].steps == 12


@pytest.mark.parametrize(
    ("validation", "images", "said"), [(0.5, 20, "20 validation images"), (0.0, 0, "the test images")]
)
def test_encoders_are_asked_about_validation_images(
    validation: float, images: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copy.deepcopy(SMALL)
    recipe["data"]["validation"] = validation
    recipe["stages"] = {"pretrain": recipe["stages"]["pretrain"]}
    result = run(parse_recipe(recipe), out=tmp_path / "run")
    assert result["pretrain"].metrics["probe/validation"] == images
    assert said in capsys.readouterr().out
