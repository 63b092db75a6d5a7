"""The collapse panel against its definitions, pair by pair in float64, and at its ends."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate import collapse, collapse_panel, collapsed

Array = np.ndarray


def rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Array:
    a = x.double().numpy()
    return a / np.sqrt((a**2).sum(1, keepdims=True))


def reference(first: Tensor, second: Tensor) -> dict[str, float]:
    x, y = unit(first), unit(second)
    n, d = x.shape

    def distance(a: Array, b: Array) -> float:
        return float(((a - b) ** 2).sum())

    def uniform(z: Array) -> float:
        pairs = [math.exp(-2 * distance(z[i], z[j])) for i in range(n) for j in range(i)]
        return math.log(sum(pairs) / len(pairs))

    stds = []
    for k in range(d):
        mean = sum(x[i, k] for i in range(n)) / n
        stds.append(math.sqrt(sum((x[i, k] - mean) ** 2 for i in range(n)) / n))
    raw = first.double().numpy()
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(raw @ raw.T if n < d else raw.T @ raw), 0))
    shares = [s / sigma.sum() + 1e-7 for s in sigma]
    return {
        "std": sum(stds) / d * math.sqrt(d),
        "rank": math.exp(-sum(p * math.log(p) for p in shares)),
        "alignment": sum(distance(x[i], y[i]) for i in range(n)) / n,
        "uniformity": (uniform(x) + uniform(y)) / 2,
        "positive": sum(float(x[i] @ y[i]) for i in range(n)) / n,
        "negative": sum(float(x[i] @ y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1)),
    }


@pytest.mark.parametrize(("n", "d"), [(2, 3), (7, 4), (12, 30), (40, 8)])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_the_panel_is_what_its_definitions_say(n: int, d: int, noise: float) -> None:
    first = rows(n, d, 0) + 1.0
    second = 3 * first + noise * rows(n, d, 1)
    panel = collapse_panel(first, second)
    expected = reference(first, second)
    assert panel.keys() == expected.keys()
    for name, value in panel.items():
        assert value.shape == () and value.dtype == torch.float32
        assert float(value) == pytest.approx(expected[name], rel=2e-4, abs=2e-5), name


def test_orthogonal_images_with_identical_views() -> None:
    eye = torch.eye(8)
    panel = {name: float(value) for name, value in collapse_panel(eye, 5 * eye).items()}
    assert panel["rank"] == pytest.approx(8, rel=1e-4)
    assert panel["std"] == pytest.approx(math.sqrt(1 - 1 / 8))
    assert panel["uniformity"] == pytest.approx(-4)
    assert (panel["alignment"], panel["positive"], panel["negative"]) == (0, 1, 0)
    assert collapsed(panel) is None


def test_directions_spread_evenly_have_std_1_whatever_their_dimension() -> None:
    for d in (4, 64, 256):
        assert float(collapse_panel(rows(2000, d, 0), rows(2000, d, 1))["std"]) == pytest.approx(1, abs=0.02)


def test_one_embedding_for_all_images_is_collapse() -> None:
    point = rows(1, 16, 0).expand(32, 16)
    panel = {name: float(value) for name, value in collapse_panel(point, point).items()}
    assert panel["std"] == pytest.approx(0, abs=1e-6)
    assert panel["rank"] == pytest.approx(1, abs=1e-3)
    assert panel["uniformity"] == pytest.approx(0, abs=1e-5)
    assert (panel["positive"], panel["negative"]) == (pytest.approx(1), pytest.approx(1))
    assert collapsed(panel) == f"std {panel['std']:.3g} is below 0.05"
    almost = point + 0.01 * rows(32, 16, 1)
    assert str(collapsed({n: float(v) for n, v in collapse_panel(almost, almost).items()})).startswith("std 0.0")


def test_two_opposite_embeddings_are_collapse_that_only_the_rank_shows() -> None:
    line = rows(1, 16, 0) * torch.tensor([1.0, -1.0]).repeat(16).unsqueeze(1)
    panel = {name: float(value) for name, value in collapse_panel(line, line).items()}
    assert panel["std"] > 0.5
    assert collapsed(panel) == f"rank {panel['rank']:.3g} is below 1.5"
    assert collapsed({}) is None and collapsed({"loss": 0.0}) is None


def test_zeros_are_collapse_and_no_nan() -> None:
    panel = collapse_panel(torch.zeros(8, 4), torch.zeros(8, 4))
    assert all(bool(value.isfinite()) for value in panel.values())
    assert collapsed({name: float(value) for name, value in panel.items()}) is not None


def test_a_single_image_has_no_pairs() -> None:
    panel = collapse_panel(rows(1, 4, 0), rows(1, 4, 1))
    assert {name for name, value in panel.items() if value.isnan()} == {"uniformity", "negative"}


def test_the_order_of_the_images_and_a_rotation_of_the_space_change_nothing() -> None:
    first, second = rows(20, 6, 0) + 0.5, rows(20, 6, 1) + 0.5
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    plain, moved = collapse_panel(first, second), collapse_panel(first[order], second[order])
    turn, _ = torch.linalg.qr(rows(6, 6, 3))
    turned = collapse_panel(first @ turn, second @ turn)
    for name, value in plain.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5)
        if name != "std":  # the one measure that looks at single dimensions
            torch.testing.assert_close(turned[name], value, rtol=1e-4, atol=1e-5)


def test_pairs_that_are_off_by_one_show() -> None:
    first = rows(50, 16, 0)
    second = first + 0.1 * rows(50, 16, 1)
    right, wrong = collapse_panel(first, second), collapse_panel(first, second.roll(1, 0))
    assert float(right["positive"]) > 0.95 and abs(float(wrong["positive"])) < 0.2
    assert float(right["alignment"]) < 0.1 and float(wrong["alignment"]) > 1.5


def test_nothing_is_left_in_the_graph_and_halves_are_computed_in_fp32() -> None:
    first, second = rows(20, 6, 0).requires_grad_(), rows(20, 6, 1).requires_grad_()
    assert not any(value.requires_grad for value in collapse_panel(first, second).values())
    half, other = first.detach().bfloat16(), second.detach().bfloat16()
    expected = collapse_panel(half.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = collapse_panel(half, other)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_nan_is_a_value_and_no_error() -> None:
    """The engine says that the loss is not finite; the panel must not stop the run before it can."""
    broken = rows(20, 6, 0)
    broken[3, 2] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panel = collapse_panel(broken, rows(20, 6, 1))
    assert panel["rank"].isnan() and panel["std"].isnan() and panel["positive"].isnan()
    assert collapsed({name: float(value) for name, value in panel.items() if not value.isnan()}) is None


def test_no_value_is_read_on_the_host() -> None:
    x = torch.empty(20, 6, device="meta")
    for measure in (collapse.embedding_std, collapse.effective_rank, collapse.uniformity):
        assert measure(x).shape == ()
    assert collapse.alignment(x, x).shape == collapse.negative_similarity(x, x).shape == ()


@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (4,), (4, 6, 1)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(SemisupError, match=r"embeddings must both be \(N, D\), got shapes \(4, 6\) and"):
        collapse_panel(torch.zeros(4, 6), torch.zeros(shape))
