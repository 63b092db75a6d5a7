"""Probe and knn stages: against scikit-learn and loops on the features; frozen networks, budgets, names of metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from semisup.data import draw_budget
from semisup.errors import SemisupError
from semisup.models import load_weights
from semisup.stages.features import unchanged
from semisup.stages.predictor import load_features
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

PROBE: dict[str, Any] = {"kind": "probe", "of": "a"}
KNN: dict[str, Any] = {"kind": "knn", "of": "a", "k": 3, "tau": 0.5}


def stages(method: str = "simclr", **judges: dict[str, Any]) -> dict[str, Any]:
    return {"a": train_stage(method), **judges}


def features_of(folder: Path, images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Through the network by hand: the images normalized by the training images' statistics."""
    mean, std = train.mean() / 255, train.std() / 255
    x = torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - mean) / std).float()
    with torch.no_grad():
        features: np.ndarray = load_features(folder, torch.device("cpu"))(x).double().numpy()
    return features


@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_a_probe_is_a_logistic_regression_on_the_features_of_the_budget(method: str, tmp_path: Path) -> None:
    data = small_data(n=90)
    _, budget = small_plan(stages(), data)
    done = run_stages(stages(method, judged=PROBE), data, tmp_path)
    record, metrics = done["judged"].record, done["judged"].metrics
    x, q = (features_of(done["a"].folder, i, data.x_train) for i in (data.x_train[budget.index], data.x_test))
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=metrics["probe/C"], max_iter=10_000, tol=1e-8)
    model.fit(scaler.transform(x), data.y_train[budget.index])
    probs = model.predict_proba(scaler.transform(q))
    assert metrics["test/accuracy"] == pytest.approx((probs.argmax(1) == data.y_test).mean())
    expected = -np.log(probs[np.arange(len(q)), data.y_test]).mean()
    assert metrics["test/nll"] == pytest.approx(expected, rel=1e-3)
    assert metrics["probe/folds"] == 2  # two labels of each class
    assert {"test/ece", "test/brier", "test/per_class_accuracy", "test/reliability", "test/confusion"} <= set(metrics)
    assert set(record["files"]) == {"features.safetensors", "probe.safetensors", "confusion.png"}
    cached = load_weights(done["judged"].folder / "features.safetensors")
    assert torch.equal(cached["index"], torch.from_numpy(budget.index))
    assert torch.equal(cached["labels"], torch.from_numpy(data.y_train[budget.index]))
    np.testing.assert_allclose(cached["features"].numpy(), x, atol=1e-5)
    assert (record["method"], record["steps"]) == ("probe", 0)


def test_layers_are_the_means_of_the_maps(tmp_path: Path) -> None:
    data = small_data(n=90)
    done = run_stages(stages(judged={**PROBE, "layers": True}, plain=PROBE), data, tmp_path)
    cached = load_weights(done["judged"].folder / "features.safetensors")
    assert set(cached) == {"index", "labels", "layer1", "layer2", "layer3"}
    network = load_features(done["a"].folder, torch.device("cpu"))
    images = data.x_train[cached["index"].numpy()]
    x = (images.transpose(0, 3, 1, 2) / 255 - data.x_train.mean() / 255) / (data.x_train.std() / 255)
    with torch.no_grad():
        maps = network.get_submodule("0").maps(torch.from_numpy(x).float())  # type: ignore[operator]
    for i, each in enumerate(maps, start=1):
        torch.testing.assert_close(cached[f"layer{i}"], each.mean((2, 3)), rtol=1e-4, atol=1e-5)
    plain, metrics = done["plain"].metrics, done["judged"].metrics
    assert metrics["test/accuracy"] == metrics["layer3/accuracy"] == plain["test/accuracy"]
    for i in (1, 2, 3):
        assert {f"layer{i}/{key}" for key in ("accuracy", "cv_accuracy", "C", "folds", "converged")} <= set(metrics)
    assert not any(name.startswith("layer") for name in plain)


def test_features_of_a_grid_are_the_means_of_its_parts(tmp_path: Path) -> None:
    data = small_data(n=90)
    judged = {
        "parts": {**PROBE, "grid": 2},
        "layers": {**PROBE, "grid": 2, "layers": True},
        "near": {**KNN, "grid": 2},
    }
    done = run_stages({**stages(judged=PROBE), **judged}, data, tmp_path)
    cached = load_weights(done["parts"].folder / "features.safetensors")
    assert set(cached) == {"index", "labels", "layer3"}
    network = load_features(done["a"].folder, torch.device("cpu"))

    def parts(images: np.ndarray) -> np.ndarray:
        x = (images.transpose(0, 3, 1, 2) / 255 - data.x_train.mean() / 255) / (data.x_train.std() / 255)
        with torch.no_grad():
            last = network.get_submodule("0").maps(torch.from_numpy(x).float())[-1].numpy()  # type: ignore[operator]
        half = last.shape[2] // 2
        assert last.shape[2:] == (2 * half, 2 * half)
        quarters = [last[:, :, i : i + half, j : j + half].mean((2, 3)) for i in (0, half) for j in (0, half)]
        return np.stack(quarters, axis=2).reshape(len(images), -1)

    index = cached["index"].numpy()
    np.testing.assert_allclose(cached["layer3"].numpy(), parts(data.x_train[index]), rtol=1e-4, atol=1e-5)
    assert done["parts"].metrics["test/accuracy"] == done["layers"].metrics["test/accuracy"]
    y = data.y_train[index]
    probs = votes(parts(data.x_train[index]), y, parts(data.x_test), 3, 0.5)
    assert done["near"].metrics["test/accuracy"] == pytest.approx((probs.argmax(1) == data.y_test).mean())


@pytest.mark.parametrize("judged", [{**PROBE, "grid": 2}, {**KNN, "grid": 3}])
def test_a_grid_needs_maps_and_is_part_of_the_fingerprint_only_if_there_is_one(judged: dict[str, Any]) -> None:
    kept = train_stage("supervised", stage={"init": {"from": "a", "head_layer": 1}})
    chain = {"a": train_stage("simclr_v2", hidden=7), "tuned": kept, "judged": {**judged, "of": "tuned"}}
    with pytest.raises(SemisupError, match=r"grid: the network of 'tuned' keeps layers of a projection head"):
        small_plan(chain, small_data())
    plain = {key: value for key, value in judged.items() if key != "grid"}
    prints = [
        small_plan(stages(judged=each), small_data())[0].stages[-1].fingerprint
        for each in (plain, {**plain, "grid": 1}, judged)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_layer_that_is_reported_is_the_last_not_the_best(tmp_path: Path) -> None:
    """Brightness tells the class: some layer of an encoder that saw three steps reads it better than the last."""
    data = small_data(n=90, n_test=300)
    for seed in range(20):
        done = run_stages(
            stages(judged={**PROBE, "layers": True}), data, tmp_path / str(seed), seed=seed, init_seed=seed
        )
        metrics = done["judged"].metrics
        if max(metrics["layer1/accuracy"], metrics["layer2/accuracy"]) > metrics["layer3/accuracy"]:
            assert metrics["test/accuracy"] == metrics["layer3/accuracy"]
            return
    raise AssertionError("no seed of twenty has a better layer than the last")


def test_a_kept_head_layer_is_what_is_probed(tmp_path: Path) -> None:
    kept = train_stage("supervised", stage={"init": {"from": "a", "head_layer": 1}})
    judged = {"kind": "probe", "of": "tuned", "layers": True}
    done = run_stages(
        {"a": train_stage("simclr_v2", hidden=7), "tuned": kept, "judged": judged}, small_data(), tmp_path
    )
    cached = load_weights(done["judged"].folder / "features.safetensors")
    assert [cached[name].shape[1] for name in ("layer1", "layer2", "layer3", "features")] == [4, 8, 16, 7]
    metrics = done["judged"].metrics
    assert {"layer3/accuracy", "features/accuracy"} <= set(metrics)
    assert metrics["test/accuracy"] == metrics["features/accuracy"]


def votes(x: np.ndarray, y: np.ndarray, q: np.ndarray, k: int, tau: float) -> np.ndarray:
    """NPID, equation by equation: probabilities (M, 3)."""
    unit_x, unit_q = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, q))
    scores = np.zeros((len(q), 3))
    for m in range(len(q)):
        cosines = unit_x @ unit_q[m]
        for i in np.argsort(-cosines)[:k]:
            scores[m, y[i]] += np.exp(cosines[i] / tau)
    return scores / scores.sum(1, keepdims=True)


def test_knn_of_the_budget(tmp_path: Path) -> None:
    data = small_data(n=90)
    _, budget = small_plan(stages(), data)
    done = run_stages(stages(judged=KNN), data, tmp_path)
    metrics = done["judged"].metrics
    x, q = (features_of(done["a"].folder, i, data.x_train) for i in (data.x_train[budget.index], data.x_test))
    probs = votes(x, data.y_train[budget.index], q, 3, 0.5)
    assert metrics["test/accuracy"] == pytest.approx((probs.argmax(1) == data.y_test).mean())
    expected = -np.log(np.maximum(probs[np.arange(len(q)), data.y_test], 1e-12)).mean()
    assert metrics["test/nll"] == pytest.approx(expected, rel=1e-3)
    assert (metrics["knn/bank"], metrics["knn/k"]) == (6, 3)
    assert "knn/accuracy" not in metrics, "a name for banks of every label"


@pytest.mark.parametrize(("per_class", "k"), [(1, 1), (4, 4)])
def test_no_more_neighbors_vote_than_a_class_has(per_class: int, k: int, tmp_path: Path) -> None:
    data = small_data()
    budget = draw_budget(data.y_train, f"{per_class}/class", 0, 3)
    judges = {"default": {"kind": "knn", "of": "a"}, "same": {"kind": "knn", "of": "a", "k": k}}
    done = run_stages(stages(**judges), data, tmp_path, budget)
    assert done["default"].metrics == done["same"].metrics
    assert done["default"].metrics["knn/k"] == k


def test_knn_of_every_label_has_no_few_label_result(tmp_path: Path) -> None:
    data = small_data(n=90)
    unknown = dataclasses.replace(data, y_train=np.where(np.arange(90) % 5 == 4, -1, data.y_train))
    judged = {"kind": "knn", "of": "a", "bank": "all", "k": 500}
    done = run_stages(stages(judged=judged), unknown, tmp_path)
    metrics = done["judged"].metrics
    known = unknown.y_train >= 0
    x, q = (features_of(done["a"].folder, i, data.x_train) for i in (data.x_train[known], data.x_test))
    guesses = votes(x, unknown.y_train[known], q, 500, 0.07).argmax(1)
    assert metrics["knn/accuracy"] == pytest.approx((guesses == data.y_test).mean())
    assert (metrics["knn/bank"], metrics["knn/k"]) == (72, 72)
    assert not any(name.startswith("test") for name in metrics)
    assert not done["judged"].record["files"]


@pytest.mark.parametrize("judge", [PROBE, KNN])
def test_hidden_and_test_labels_decide_nothing(judge: dict[str, Any], tmp_path: Path) -> None:
    data = small_data(n=90)
    _, budget = small_plan(stages(), data)
    hidden = np.setdiff1d(np.arange(90), budget.index)
    y = data.y_train.copy()
    y[hidden] = (y[hidden] + 1) % 3
    poisoned = dataclasses.replace(data, y_train=y)
    first, again = (
        run_stages(stages(judged=judge), d, tmp_path / name, budget)["judged"].metrics
        for name, d in (("one", data), ("two", poisoned))
    )
    assert first == again
    turned = dataclasses.replace(data, y_test=(data.y_test + 1) % 3)
    other = run_stages(stages(judged=judge), turned, tmp_path / "three", budget)["judged"].metrics
    chosen = [name for name in first if name.startswith(("probe", "knn"))]
    assert [other[name] for name in chosen] == [first[name] for name in chosen]
    assert np.array_equal(np.sum(other["test/confusion"], 0), np.sum(first["test/confusion"], 0)), "the same answers"
    assert other["test/accuracy"] != first["test/accuracy"]


@pytest.mark.parametrize("judge", [PROBE, KNN])
def test_validation_labels_judge_and_are_not_learned_from(judge: dict[str, Any], tmp_path: Path) -> None:
    data = small_data(n=90)
    budget = draw_budget(data.y_train, "8/class", 0, 3, 0.5)
    done = run_stages(stages(judged=judge), data, tmp_path / "one", budget)["judged"]
    y = data.y_train.copy()
    y[budget.validation] = (y[budget.validation] + 1) % 3
    other = run_stages(stages(judged=judge), dataclasses.replace(data, y_train=y), tmp_path / "two", budget)["judged"]
    assert other.metrics["test/nll"] == done.metrics["test/nll"]
    assert other.metrics["validation/nll"] != done.metrics["validation/nll"]
    assert 0 <= done.metrics["validation/accuracy"] <= 1


@pytest.mark.parametrize("judge", [PROBE, KNN])
def test_a_network_in_train_mode_would_be_noticed(
    judge: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(model: nn.Module, batches: Iterable[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model.train()(images) for images in batches])

    for place in ("semisup.evaluate", "semisup.stages.features"):
        monkeypatch.setattr(f"{place}.predict_logits", careless)
    with pytest.raises(AssertionError, match=r"evaluation has changed the network: .*running_mean"):
        run_stages(stages(judged=judge), small_data(), tmp_path)


def test_a_changed_weight_or_statistic_is_noticed() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)  # type: ignore
    with unchanged(network.eval()):
        network(torch.randn(4, 1, 5, 5))
    with (
        pytest.raises(AssertionError, match=r"has changed the network: 1.running_mean, 1.running_var"),
        unchanged(network),
    ):
        network.train()(torch.randn(4, 1, 5, 5))
    network.eval()
    with (
        pytest.raises(AssertionError, match=r"network: 0.weight"),
        unchanged(network),
        torch.no_grad(),
    ):
        network[0].weight[0, 0, 0, 0] *= 1 + 2**-22  # type: ignore[index, operator]
    network[1].running_mean[0] = torch.nan  # type: ignore[index, operator]
    with unchanged(network):
        pass  # NaN is not equal to itself, and yet unchanged


def test_without_test_images_nothing_is_said_about_them(tmp_path: Path) -> None:
    data = small_data()
    blind = dataclasses.replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    judges = {"probe": PROBE, "knn": KNN, "every": {**KNN, "bank": "all"}}
    done = run_stages(stages(**judges), blind, tmp_path)
    for name in judges:
        assert not any(key.startswith("test") or key == "knn/accuracy" for key in done[name].metrics)
        assert "confusion.png" not in done[name].record["files"]


def test_networks_without_layers_are_refused_before_training() -> None:
    data = small_data()
    wide = np.zeros((60, 32, 32, 3), np.uint8)
    color = dataclasses.replace(data, x_train=wide, x_test=wide[:24])
    mobile = {"model": {"name": "torchvision/mobilenet_v3_small"}}
    judged = {**PROBE, "layers": True}
    try:
        small_plan(stages(judged=PROBE), color, **mobile)
    except SemisupError as error:
        pytest.fail(f"the recipe has another mistake: {error}")
    with pytest.raises(SemisupError, match=r"stages.judged.layers: the network of 'a', .*, names no layers"):
        small_plan(stages(judged=judged), color, **mobile)


@pytest.mark.parametrize("judge", [PROBE, KNN])
def test_it_needs_labels(judge: dict[str, Any]) -> None:
    nothing = draw_budget(np.full(60, -1), "all", 0, 3)
    with pytest.raises(SemisupError, match=r"stages.judged.kind: '(probe|knn)' learns from labels, but no image"):
        small_plan(stages(judged=judge), small_data(), nothing)


def test_a_budget_changes_what_reads_it_and_nothing_else() -> None:
    judges = {"probe": PROBE, "knn": KNN, "every": {**KNN, "bank": "all"}}
    prints = []
    for labels in ("2/class", "4/class"):
        data = small_data()
        plan, _ = small_plan(stages(**judges), data, draw_budget(data.y_train, labels, 0, 3))
        prints.append({stage.name: stage.fingerprint for stage in plan.stages})
    assert [name for name in prints[0] if prints[0][name] != prints[1][name]] == ["probe", "knn"]
    assert len(set(prints[0].values())) == 4
