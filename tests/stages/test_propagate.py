"""Label propagation: the numbers of methods.md 3.20, dense matrices in place of sparse ones, real digits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semisup.data import ImageData, draw_budget, load_data
from semisup.engine import generator
from semisup.errors import SemisupError
from semisup.graph import (
    balanced,
    certainty,
    class_weights,
    estimated_shares,
    neighbor_graph,
    resample,
    spread_labels,
    wanted_shares,
    whitened,
)
from semisup.settings import DataConfig
from semisup.stages import load_predictor
from semisup.stages.predictor import load_features
from semisup.stages.targets import read_targets
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

Array = np.ndarray


def features(n: int = 30, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def dense_graph(x: torch.Tensor, k: int, power: float) -> Array:
    """From the words of the paper, pair by pair."""
    rows = x.double().tolist()
    n = len(rows)

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
        return sum(v * w for v, w in zip(a, b, strict=True)) / lengths

    edges = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -cosine(rows[i], rows[j]))
        for j in others[:k]:
            edges[i, j] = max(0.0, cosine(rows[i], rows[j])) ** power
    return edges + edges.T


def normalized(w: Array) -> Array:
    degrees = w.sum(1)
    return np.array(
        [
            [entry / math.sqrt(a * b) if entry else 0 for entry, b in zip(row, degrees, strict=True)]
            for row, a in zip(w, degrees, strict=True)
        ]
    )


INDEX, LABELS = np.array([0, 7, 11, 20]), np.array([0, 1, 2, 1])


def one_hot(n: int = 30, classes: int = 3) -> Array:
    y = np.zeros((n, classes))
    y[INDEX, LABELS] = 1
    return y


# --- the features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [1, 3, 4, 50])
def test_whitened_cosines_match_the_covariance(components: int) -> None:
    """Of the inner products, that is: a component's sign is nobody's."""
    x = features() * torch.tensor([1.0, 5.0, 0.2, 3.0]) + 7
    found = whitened(x, components)
    centered = x.double().numpy() - x.double().numpy().mean(0)
    values, vectors = np.linalg.eig(np.cov(centered.T))
    largest = np.argsort(-values)[:components]
    expected = sum(np.outer(centered @ vectors[:, j], centered @ vectors[:, j]) / values[j] for j in largest)
    assert found.shape == (30, min(components, 4)) and found.dtype == torch.float32
    np.testing.assert_allclose((found @ found.T).numpy(), expected, atol=1e-4)


def test_whitened_features_that_are_all_the_same_stay_finite() -> None:
    x = torch.cat([features(), torch.ones(30, 2)], dim=1)
    assert whitened(x, 6).isfinite().all()


@pytest.mark.parametrize("fewer", ["images", "features"])
def test_whitened_directions_without_variance_are_left_out(fewer: str) -> None:
    """Rounding would be scaled to variance 1 there, and images that the components are not of to 1e15."""
    x = features(60, 50)
    if fewer == "features":
        x = torch.cat([x[:, :8], x[:, :8], torch.ones(60, 3)], dim=1)
    fit = 20 if fewer == "images" else 40
    found = whitened(x, 19 if fewer == "features" else 32, fit)
    assert found.shape == (60, 8 if fewer == "features" else 19) and found.abs().max() < 20
    torch.testing.assert_close(found[:fit].std(0), torch.ones(found.shape[1]))
    seen = x[:fit].double()
    assert torch.linalg.matrix_rank(seen - seen.mean(0)) == found.shape[1]


# --- the graph -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 29, 50])
@pytest.mark.parametrize("power", [1.0, 3.0])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_graph_matches_loops(k: int, power: float, chunk: int) -> None:
    graph = neighbor_graph(features(), k, power, chunk).toarray()
    np.testing.assert_allclose(graph, dense_graph(features(), k, power), rtol=1e-4, atol=1e-6)


def test_graph_is_symmetric_without_self_loops_and_ignores_lengths() -> None:
    x = features()
    x[3] = x[4]  # a twin is a neighbor, not oneself
    graph = neighbor_graph(x, 5)
    dense = graph.toarray()
    assert np.array_equal(dense, dense.T)
    assert not dense.diagonal().any()
    assert (graph.data > 0).all(), "zeros are stored"
    assert dense[3, 4] == pytest.approx(2.0)
    longer = neighbor_graph(x * torch.arange(1.0, 31).unsqueeze(1), 5).toarray()
    np.testing.assert_allclose(longer, dense, rtol=1e-4, atol=1e-6)


def test_largest_eigenvalue_is_1() -> None:
    s = normalized(neighbor_graph(features().abs(), 5).toarray())
    assert np.linalg.eigvalsh(s).max() == pytest.approx(1.0, abs=1e-9)


def test_one_image_has_no_edges() -> None:
    assert neighbor_graph(features(1), 50).nnz == 0


# --- the spread ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_spread_solves_the_closed_form(alpha: float) -> None:
    graph = neighbor_graph(features(), 5)
    expected = np.linalg.inv(np.eye(30) - alpha * normalized(graph.toarray())) @ one_hot()
    np.testing.assert_allclose(spread_labels(graph, INDEX, LABELS, 3, alpha), expected, rtol=1e-3, atol=1e-4)


def test_iteration_converges_to_a_multiple() -> None:
    """F <- alpha S F + (1 - alpha) Y ends at (1 - alpha) F*."""
    graph, alpha = neighbor_graph(features(), 5), 0.9
    s, f = normalized(graph.toarray()), one_hot()
    for _ in range(500):
        f = alpha * s @ f + (1 - alpha) * one_hot()
    np.testing.assert_allclose((1 - alpha) * spread_labels(graph, INDEX, LABELS, 3, alpha), f, rtol=1e-3, atol=1e-5)


def test_alpha_0_leaves_the_labels() -> None:
    assert np.array_equal(spread_labels(neighbor_graph(features(), 5), INDEX, LABELS, 3, 0.0), one_hot())


def test_blocks_that_are_not_joined_exchange_nothing() -> None:
    from scipy.sparse import block_diag, csr_array

    blocks = [neighbor_graph(features(10, seed=seed).abs(), 3) for seed in range(3)]
    spread = spread_labels(csr_array(block_diag(blocks)), np.array([2, 15]), np.array([0, 1]), 2, 0.99)
    assert (spread[:10, 0] > 0).all() and not spread[:10, 1].any()
    assert (spread[10:20, 1] > 0).all() and not spread[10:20, 0].any()
    assert not spread[20:].any()  # a block without a label
    probs, omega = certainty(spread)
    np.testing.assert_allclose(probs[20:], 0.5)
    np.testing.assert_allclose(omega[:20], 1.0)
    assert not omega[20:].any()


def test_an_image_without_edges_keeps_its_label() -> None:
    x = torch.zeros(4, 4)
    x[:2] = torch.tensor([1.0, 0, 0, 0])
    x[2], x[3] = torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 0])
    spread = spread_labels(neighbor_graph(x, 1), np.array([0, 2]), np.array([0, 1]), 2, 0.9)
    assert spread[2].tolist() == [0.0, 1.0]
    assert spread[3].tolist() == [0.0, 0.0]
    assert spread[1, 0] > 0


def test_renaming_images_or_classes_changes_nothing_else() -> None:
    x, order = features(), torch.randperm(30, generator=torch.Generator().manual_seed(3))
    place = np.argsort(order.numpy())
    spread = spread_labels(neighbor_graph(x, 5), INDEX, LABELS, 3, 0.9)
    moved = spread_labels(neighbor_graph(x[order], 5), place[INDEX], LABELS, 3, 0.9)
    np.testing.assert_allclose(moved, spread[order.numpy()], rtol=1e-4, atol=1e-5)
    renamed = spread_labels(neighbor_graph(x, 5), INDEX, (LABELS + 1) % 3, 3, 0.9)
    np.testing.assert_allclose(renamed, np.roll(spread, 1, axis=1), rtol=1e-4, atol=1e-5)


def test_no_convergence_is_an_error() -> None:
    """On a path, each step of the solver carries a label by one image."""
    from scipy.sparse import csr_array, diags_array

    path = csr_array(diags_array([np.ones(2999), np.ones(2999)], offsets=[-1, 1]))
    with pytest.raises(SemisupError, match=r"alpha: the labels of class 0 do not settle at 0.999999"):
        spread_labels(path, np.array([0]), np.array([0]), 2, 0.999999)


# --- the weights -----------------------------------------------------------------------------------------------------


def test_certainty_by_hand() -> None:
    probs, omega = certainty(np.array([[2.0, 2, 2, 2], [0, 5, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]))
    np.testing.assert_allclose(probs.sum(1), 1)
    np.testing.assert_allclose(omega, [0, 1, 0, 0.5], atol=1e-12)  # log 2 is half of log 4
    small, large = certainty(np.array([[0.3, 0.1], [3.0, 1.0]]))[1]
    assert small == pytest.approx(large)


def test_mean_class_weight_is_1() -> None:
    guesses = np.array([0, 0, 0, 0, 1, 2, 2, 1, 0, 0])
    weights = class_weights(guesses, 3)
    np.testing.assert_allclose(weights, [10 / 3 / 6, 10 / 3 / 2, 10 / 3 / 2])
    assert weights[guesses].mean() == pytest.approx(1.0)
    assert class_weights(np.array([0, 2]), 3).tolist() == [2 / 3, 0.0, 2 / 3]


def test_balanced_by_loops() -> None:
    spread = np.random.default_rng(0).random((30, 3)) * [1.0, 5.0, 0.2]
    found = balanced(spread)
    expected = spread.copy()
    for _ in range(200):
        for c in range(3):
            expected[:, c] /= expected[:, c].sum()
        for i in range(30):
            expected[i] /= expected[i].sum()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(0), 10, atol=0.01)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert np.bincount(spread.argmax(1), minlength=3)[1] > 25 > np.bincount(found.argmax(1), minlength=3)[1]


def test_balanced_to_given_shares() -> None:
    spread = np.random.default_rng(0).random((30, 3)) * [1.0, 5.0, 0.2]
    found = balanced(spread, np.array([0.5, 0.3, 0.2]))
    np.testing.assert_allclose(found.mean(0), [0.5, 0.3, 0.2], atol=0.01)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(balanced(spread, np.full(3, 1 / 3)), balanced(spread), atol=1e-3)
    # Scaling leaves the ratios of two images' odds as they were.
    odds = found[:, 0] / found[:, 1] * spread[:, 1] / spread[:, 0]
    np.testing.assert_allclose(odds, odds[0])


def gaussian_posteriors(shares: list[float], of_labels: list[float], n: int = 6000) -> tuple[Array, Array]:
    """Exact posteriors under `of_labels` of points drawn by `shares` from three Gaussians, and their classes."""
    draw = np.random.default_rng(0)
    y = draw.choice(3, n, p=shares)
    centers = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    points = centers[y] + draw.normal(size=(n, 2))
    odds = np.exp(-((points[:, None] - centers) ** 2).sum(2) / 2) * of_labels
    return odds / odds.sum(1, keepdims=True), y


@pytest.mark.parametrize("of_labels", [[1 / 3] * 3, [0.2, 0.2, 0.6]])
def test_estimated_shares_are_those_of_the_images(of_labels: list[float]) -> None:
    probs, y = gaussian_posteriors([0.7, 0.2, 0.1], of_labels)
    truth = np.bincount(y) / len(y)
    assert np.abs(probs.mean(0) - truth).max() > 0.05, "the mean would do: too easy an example"
    np.testing.assert_allclose(estimated_shares(probs, np.array(of_labels)), truth, atol=0.025)


def test_wanted_shares() -> None:
    spread, y = gaussian_posteriors([0.7, 0.2, 0.1], [1 / 3] * 3)
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert wanted_shares(True, spread, labels) is wanted_shares("uniform", spread, labels) is None
    np.testing.assert_allclose(wanted_shares("labels", spread, labels), np.array([4, 2, 3]) / 9)
    np.testing.assert_array_equal(wanted_shares([0.1, 0.2, 0.7], spread, labels), [0.1, 0.2, 0.7])
    with_nothing = np.vstack([3 * spread, np.zeros((2000, 3))])  # rows of any sum, and some that nothing reached
    found = wanted_shares("estimated", with_nothing, np.array([0, 1, 2]))
    np.testing.assert_allclose(found, np.bincount(y) / len(y), atol=0.025)


@pytest.mark.parametrize("balance", ["labels", "estimated", [0.6, 0.3, 0.1]])
def test_propagated_labels_have_the_wanted_shares(balance: Any, tmp_path: Path) -> None:
    data = small_data()
    done = run_stages(stages(soft=True, alpha=0.9, balance=balance), data, tmp_path)
    _, budget = small_plan(stages(), data)
    index, labels = budget.index, data.y_train[budget.index]
    backbone = load_features(done["a"].folder, torch.device("cpu"))
    graph = neighbor_graph(backbone(clean_images(data)).detach(), 5)
    spread = spread_labels(graph, index, labels, 3, 0.9)
    spread = balanced(spread, wanted_shares(balance, spread, labels))
    spread[index] = np.eye(3)[labels]
    np.testing.assert_allclose(read_targets(done["graph"])[1].numpy(), spread, atol=1e-3)


def test_shares_of_other_classes_than_there_are_are_refused() -> None:
    with pytest.raises(SemisupError, match=r"balance: must be 3 numbers"):
        small_plan(stages(balance=[0.5, 0.5]), small_data())


def test_balanced_leaves_out_where_nothing_arrived() -> None:
    """Scaled columns would make a guess, and a certainty, of it."""
    spread = np.random.default_rng(0).random((30, 3)) * [1.0, 5.0, 0.2]
    found = balanced(np.vstack([spread[:10], np.zeros((2, 3)), spread[10:]]))
    np.testing.assert_array_equal(found[10:12], 0)
    np.testing.assert_array_equal(np.delete(found, [10, 11], axis=0), balanced(spread))
    np.testing.assert_allclose(certainty(found)[1][10:12], 0, atol=1e-12)


def test_the_pool_follows_the_weights() -> None:
    weights = np.random.default_rng(0).random(200) ** 3
    weights[:20] = 0
    expected = 200 * weights / weights.sum()
    total = np.zeros(200)
    for seed in range(400):
        counts = np.bincount(resample(weights, generator(seed)).numpy(), minlength=200)
        assert counts.sum() == 200
        assert (np.floor(expected) <= counts).all() and (counts <= np.ceil(expected)).all()
        total += counts
    np.testing.assert_allclose(total / 400, expected, atol=0.1)
    assert torch.equal(resample(weights, generator(1)), resample(weights, generator(1)))


def test_equal_weights_take_every_image_once() -> None:
    assert resample(np.full(50, 0.3), generator(0)).tolist() == list(range(50))


# --- the stage -------------------------------------------------------------------------------------------------------


def stages(teacher: str = "supervised", **propagate: Any) -> dict[str, Any]:
    return {
        "a": train_stage(teacher),
        "graph": {"kind": "propagate", "teacher": "a", "neighbors": 5, **propagate},
        "student": train_stage("noisy_student", stage={"pseudo_labels": "graph"}),
    }


def clean_images(data: ImageData) -> torch.Tensor:
    """What a network sees of the training images."""
    images = torch.from_numpy(data.x_train).permute(0, 3, 1, 2).float() / 255
    return (images - images.mean()) / images.std(unbiased=False)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("teacher", ["supervised", "simclr"])
def test_the_stage_leaves_what_its_functions_say(teacher: str, soft: bool, tmp_path: Path) -> None:
    data = small_data()
    done = run_stages(stages(teacher, soft=soft, alpha=0.9), data, tmp_path)
    _, budget = small_plan(stages(), data)
    pool, targets = read_targets(done["graph"])
    network = load_features(done["a"].folder, torch.device("cpu"))
    graph = neighbor_graph(network(clean_images(data)).detach(), 5)
    spread = spread_labels(graph, budget.index, data.y_train[budget.index], 3, 0.9)
    probs, omega = certainty(spread)
    probs[budget.index], omega[budget.index] = np.eye(3)[data.y_train[budget.index]], 1
    guesses = probs.argmax(1)
    expected = probs if soft else np.eye(3)[guesses]
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-3)
    assert targets.dtype == torch.float32
    weights = omega * class_weights(guesses, 3)[guesses]
    counts = np.bincount(pool.numpy(), minlength=len(targets))
    assert np.abs(counts - len(targets) * weights / weights.sum()).max() < 1.01
    assert done["graph"].record["method"] == "propagate"
    assert 0 <= done["graph"].metrics["pseudo_labels/coverage"] <= 1


def test_the_options_change_features_and_predictions_as_they_say(tmp_path: Path) -> None:
    data = replace(small_data(), flip=True)
    options = {"grid": 2, "components": 3, "balance": True, "mirror": True}
    done = run_stages(stages(soft=True, alpha=0.9, **options), data, tmp_path)
    _, budget = small_plan(stages(), data)
    backbone = load_features(done["a"].folder, torch.device("cpu"))[0]  # type: ignore[index]
    features = []
    for images in (clean_images(data), clean_images(data).flip(3)):
        maps = backbone.maps(images)[-1].detach()
        half = maps.shape[2] // 2
        parts = [
            maps[:, :, rows, columns].mean((2, 3))
            for rows in (slice(half), slice(half, None))
            for columns in (slice(half), slice(half, None))
        ]
        features.append(torch.stack(parts, dim=2).flatten(1))
    graph = neighbor_graph(whitened((features[0] + features[1]) / 2, 3), 5)
    spread = balanced(spread_labels(graph, budget.index, data.y_train[budget.index], 3, 0.9))
    spread[budget.index] = np.eye(3)[data.y_train[budget.index]]
    np.testing.assert_allclose(read_targets(done["graph"])[1].numpy(), spread, atol=1e-3)


def test_each_option_is_another_stage_and_a_default_spelled_out_is_none() -> None:

    def fingerprint(flip: bool = False, **options: Any) -> str:
        plan, _ = small_plan(stages("simclr", **options), replace(small_data(), flip=flip))
        return plan.stages[1].fingerprint

    assert fingerprint() == fingerprint(grid=1, components=None, balance=False, mirror=False)
    others = [
        fingerprint(grid=2),
        fingerprint(components=2),
        fingerprint(components=3),
        fingerprint(balance=True),
        fingerprint(balance="labels"),
    ]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint(flip=True) != fingerprint(flip=True, mirror=True)


def test_the_features_of_several_networks_stand_side_by_side(tmp_path: Path) -> None:
    data = small_data()
    both = {"kind": "propagate", "teacher": ["a", "b"], "neighbors": 5, "soft": True, "alpha": 0.9}
    done = run_stages({"a": train_stage("supervised"), "b": train_stage("simclr"), "graph": both}, data, tmp_path)
    _, budget = small_plan(stages(), data)
    images = clean_images(data)
    networks = [load_features(done[name].folder, torch.device("cpu")) for name in ("a", "b")]
    graph = neighbor_graph(torch.cat([network(images) for network in networks], dim=1).detach(), 5)
    probs, _ = certainty(spread_labels(graph, budget.index, data.y_train[budget.index], 3, 0.9))
    probs[budget.index] = np.eye(3)[data.y_train[budget.index]]
    np.testing.assert_allclose(read_targets(done["graph"])[1].numpy(), probs, atol=1e-3)


def test_a_grid_needs_a_map() -> None:
    kept = {"init": {"from": "b", "head_layer": 1}}
    tuned = {"b": train_stage("simclr_v2"), "a": train_stage("supervised", stage=kept)}
    with pytest.raises(SemisupError, match=r"grid: the network of 'a' keeps layers of a projection head"):
        small_plan({**tuned, "graph": {"kind": "propagate", "teacher": "a", "grid": 2}}, small_data())


def test_a_student_learns_from_it_and_repeats(tmp_path: Path) -> None:
    first, second = (run_stages(stages(), small_data(), tmp_path / name) for name in ("one", "two"))
    images = small_data().x_test
    answers = [load_predictor(done["student"].folder).predict(images) for done in (first, second)]
    assert np.array_equal(*answers)


def test_features_are_what_the_head_sees(tmp_path: Path) -> None:
    done = run_stages({"a": train_stage("supervised")}, small_data(), tmp_path)
    predictor = load_predictor(done["a"].folder)
    network = load_features(done["a"].folder, torch.device("cpu"))
    assert not network.training
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        head = predictor.network.get_submodule("head")
        torch.testing.assert_close(head(network(images)), predictor.network(images))


def test_it_needs_labels() -> None:
    data = small_data()
    nothing = draw_budget(np.full(60, -1), "all", 0, 3)
    with pytest.raises(SemisupError, match=r"stages.graph.kind: 'propagate' learns from labels, but no image"):
        small_plan({"a": train_stage("simclr"), "graph": {"kind": "propagate", "teacher": "a"}}, data, nothing)


def test_labels_of_real_digits_reach_their_neighbors() -> None:
    """40 labels and raw pixels: propagation labels more digits rightly than a classifier on the 40."""
    from sklearn.linear_model import LogisticRegression

    data = load_data(DataConfig(source="digits"))
    budget = draw_budget(data.y_train, 40, 0, data.num_classes)
    x, y = data.x_train.reshape(len(data.x_train), -1) / 255.0, data.y_train
    hidden = np.setdiff1d(np.arange(len(y)), budget.index)
    classifier = LogisticRegression(max_iter=1000).fit(x[budget.index], y[budget.index])
    labels_only = (classifier.predict(x[hidden]) == y[hidden]).mean()
    graph = neighbor_graph(torch.from_numpy(x - x.mean(0)), 10)
    probs, omega = certainty(spread_labels(graph, budget.index, y[budget.index], data.num_classes, 0.99))
    right = probs.argmax(1)[hidden] == y[hidden]
    assert right.mean() > labels_only + 0.03
    assert right.mean() > 0.85
    sure = omega[hidden] > np.median(omega[hidden])
    assert right[sure].mean() > right[~sure].mean() + 0.05  # omega knows


def test_images_that_mirroring_may_change_are_not_mirrored() -> None:
    with pytest.raises(SemisupError, match=r"mirror: a mirrored image of 'small' may be of another class"):
        small_plan(stages(mirror=True), replace(small_data(), flip=False))
