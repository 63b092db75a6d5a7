"""Figures: the right images in the right places, read back from the PNG."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate.figures import (
    embedding_figure,
    nearest_images,
    neighbors_figure,
    plane,
    principal_plane,
    reconstruction_figure,
)

pytestmark = pytest.mark.usefixtures("with_figures")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def features(n: int = 30, d: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_nearest_images_match_loops_and_leave_the_query_out() -> None:
    x = features()
    x[7] = 2 * x[3]  # a twin is the nearest, not oneself
    queries = torch.tensor([3, 7, 20])
    found = nearest_images(x, queries, 4)
    for row, query in zip(found.tolist(), queries.tolist(), strict=True):
        cosines = [float(torch.cosine_similarity(x[query], x[i], dim=0)) for i in range(30)]
        order = sorted((i for i in range(30) if i != query), key=lambda i: -cosines[i])
        assert row == order[:4]
    assert found[0, 0] == 7 and found[1, 0] == 3


def test_the_plane_is_that_of_the_principal_components() -> None:
    x = features(40, 6) * torch.tensor([1.0, 5.0, 0.1, 3.0, 0.2, 0.3]) + 10
    found = principal_plane(x)
    centered = x.double() - x.double().mean(0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    expected = u[:, :2] * s[:2]
    for k in range(2):
        torch.testing.assert_close(found[:, k] * (found[:, k] @ expected[:, k]).sign(), expected[:, k])
    torch.testing.assert_close(principal_plane(x.flip(0)).flip(0), found)  # the sign is no accident
    one = principal_plane(features(10, 1))
    assert one.shape == (10, 2) and not one[:, 1].any() and one[:, 0].std() > 0.1


def test_umap_draws_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features()
    assert plane(x)[1] == "PCA"
    given = {}

    class UMAP:
        def __init__(self, random_state: int) -> None:
            given["seed"] = random_state

        def fit_transform(self, array: np.ndarray) -> np.ndarray:
            return array[:, :2] + 1

    module = types.ModuleType("umap")
    module.UMAP = UMAP  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "umap", module)
    points, how = plane(x)
    assert how == "UMAP" and given == {"seed": 0}
    torch.testing.assert_close(points, x[:, :2].double() + 1)


def tiles(image: np.ndarray, rows: int, size: int) -> list[int]:
    """Top rows of the tiles, which are below the title at the bottom of the figure."""
    return [image.shape[0] - (rows - i) * size for i in range(rows)]


def test_neighbors_stand_next_to_their_query_in_frames_of_their_class(tmp_path: Path) -> None:
    images = np.zeros((5, 8, 8, 3), np.uint8)
    for i in range(5):
        images[i] = 50 * (i + 1)
    labels = np.array([0, 0, 1, -1, 1])
    near, queries = torch.tensor([[1, 2, 3], [4, 0, 3]]), torch.tensor([0, 2])
    neighbors_figure(images, near, queries, labels, tmp_path / "n.png")
    figure = pixels(tmp_path / "n.png")
    width, inner = 3, 56  # 8 pixels seven times, a frame of 3 and a margin of 3
    size, gap = inner + 4 * width, (inner + 4 * width) // 3
    for row, top in enumerate(tiles(figure, 2, size)):
        query = int(queries[row])
        lefts = [0, *(size + gap + i * size for i in range(3))]
        for i, left in zip([query, *near[row].tolist()], lefts, strict=True):
            middle = figure[top + size // 2, left + size // 2]
            assert middle.tolist() == [50 * (i + 1)] * 3
            frame = figure[top + width + 1, left + size // 2]
            if i == query or labels[i] < 0:
                assert frame.tolist() == [255] * 3
            else:
                same = labels[i] == labels[query]
                assert (frame[1] > frame[0]) == same and (frame[0] > frame[1]) != same
    neighbors_figure(images[..., :1], near, queries, None, tmp_path / "gray.png")
    gray = pixels(tmp_path / "gray.png")[40:]
    assert (gray.max(2) == gray.min(2)).all(), "no frames where no class is known"


def test_reconstructions_stand_below_their_image(tmp_path: Path) -> None:
    original = torch.linspace(0.1, 0.9, 3).view(3, 1, 1, 1).expand(3, 1, 28, 28)
    seen, made = 1 - original, torch.full((3, 1, 28, 28), 7.0)
    made[0], made[1] = -3.0, torch.nan
    reconstruction_figure(original, seen, made, tmp_path / "r.png")
    figure = pixels(tmp_path / "r.png")
    size = 56 + 4 * 3
    values = [
        [int(figure[top + size // 2, left + size // 2, 0]) for left in (0, size, 2 * size)]
        for top in tiles(figure, 3, size)
    ]
    assert values == [[26, 128, 230], [230, 128, 26], [0, 0, 255]]
    with pytest.raises(SemisupError, match=r"original, seen and made must have the same shape, got \(3, 1, 28, 28\)"):
        reconstruction_figure(original, seen, made[:2], tmp_path / "x.png")


@pytest.mark.parametrize("classes", [2, 15, 100])
def test_an_embedding_has_a_color_for_each_class(classes: int, tmp_path: Path) -> None:
    labels = np.arange(300) % classes
    points = torch.from_numpy(np.stack([labels, np.arange(300) % 7], 1)).double()
    names = [f"class ${i}_" for i in range(classes)]
    embedding_figure(points, labels, names, "title", tmp_path / "e.png")
    colors = {tuple(p) for p in pixels(tmp_path / "e.png").reshape(-1, 3) if max(p) - min(p) > 60}
    assert len(colors) >= min(classes, 20)
    embedding_figure(points, None, names, "title", tmp_path / "none.png")
    unknown = pixels(tmp_path / "none.png")
    assert (abs(unknown - 178.5) < 1).all(2).sum() > 100, "gray points where nobody knows"
    assert (unknown.max(2) == unknown.min(2)).all(), "and no class in the legend"


def test_the_same_picture_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        embedding_figure(principal_plane(features()), np.arange(30) % 3, list("xyz"), "t", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
