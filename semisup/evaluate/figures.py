"""What an encoder has learned, to look at: neighbors, a map of the images, reconstructions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from semisup.errors import SemisupError
from semisup.evaluate.plots import save_figure
from semisup.files import replacing

__all__ = [
    "embedding_figure",
    "nearest_images",
    "neighbors_figure",
    "plane",
    "principal_plane",
    "reconstruction_figure",
]

RIGHT, WRONG = (0.1, 0.6, 0.2), (0.85, 0.2, 0.15)
"""Frames around neighbors of the query's class and of another one."""


def nearest_images(features: Tensor, queries: Tensor, k: int) -> Tensor:
    """Rows (Q, k) of the images nearest to each query by cosine, nearest first; the query itself is left out.

    Args:
        features: (N, D), N > k.
        queries: (Q,) int64 rows of the queries.
        k: neighbors.
    """
    unit = F.normalize(features.float(), dim=1)
    cosines = unit[queries] @ unit.T
    cosines.scatter_(1, queries.unsqueeze(1), -torch.inf)
    return cosines.topk(k, dim=1).indices


def principal_plane(features: Tensor) -> Tensor:
    """Coordinates (N, 2) float64 of features (N, D) on their first two principal components, on the CPU.

    The sign of a component is open: here its largest entry is positive. One-dimensional features have 0 as the second.
    """
    x = features.detach().cpu().double()
    x = x - x.mean(0)
    _, directions = torch.linalg.eigh(x.T @ x)  # ascending
    axes = F.pad(directions, (max(0, 2 - len(directions)), 0)).flip(1)[:, :2]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return x @ (axes * torch.where(largest < 0, -1.0, 1.0))


def plane(features: Tensor) -> tuple[Tensor, str]:
    """Coordinates (N, 2) of features (N, D) to draw them by, and whose they are: UMAP's where installed, else PCA's."""
    if importlib.util.find_spec("umap") is None:
        return principal_plane(features), "PCA"
    made = importlib.import_module("umap").UMAP(random_state=0).fit_transform(features.detach().float().cpu().numpy())
    return torch.as_tensor(made).double(), "UMAP"


def neighbors_figure(
    images: NDArray[np.uint8], neighbors: Tensor, queries: Tensor, labels: NDArray[np.int64] | None, path: str | Path
) -> None:
    """Write a row for each query: the image, a gap, its nearest ones in order.

    Args:
        images: (N, H, W, C) uint8.
        neighbors: (Q, k) rows of `images`.
        queries: (Q,) rows of `images`.
        labels: (N,) classes, -1 unknown: a green frame around a neighbor of the query's class, a red one around
            another; None, or unknown: no frame.
        path: PNG to write, in an existing folder.
    """
    rows = []
    for query, near in zip(queries.tolist(), neighbors.tolist(), strict=True):
        tiles = [_framed(images[query], None)]
        for i in near:
            known = labels is not None and labels[query] >= 0 and labels[i] >= 0
            tiles.append(_framed(images[i], None if not known or labels is None else bool(labels[i] == labels[query])))
        rows.append([tiles[0], np.ones((len(tiles[0]), len(tiles[0]) // 3, 3)), *tiles[1:]])
    words = "" if labels is None else " (green: its class, red: another)"
    _mosaic(rows, f"An image, and its nearest ones by cosine of the features{words}", path)


def reconstruction_figure(original: Tensor, seen: Tensor, made: Tensor, path: str | Path) -> None:
    """Write a column for each image: as it is, as the network was shown it, as the network rebuilt it.

    Args:
        original: (N, C, H, W) in [0, 1].
        seen: (N, C, H, W), cut to [0, 1].
        made: (N, C, H, W), likewise.
        path: PNG to write, in an existing folder.

    Raises:
        SemisupError: the three shapes differ.
    """
    if not original.shape == seen.shape == made.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (original, seen, made))
        raise SemisupError(f"original, seen and made must have the same shape, got {shapes}")
    rows = []
    for images in (original, seen, made):
        pixels = images.detach().float().cpu().nan_to_num(0).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        rows.append([_framed((255 * image).round().astype(np.uint8), None) for image in pixels])
    _mosaic(rows, "An image, what the network saw of it, and what it made of that", path)


def embedding_figure(
    points: Tensor, labels: NDArray[np.int64] | None, classes: Sequence[str], title: str, path: str | Path
) -> None:
    """Write a scatter plot of images, colored by class.

    Args:
        points: (N, 2).
        labels: (N,) classes, -1 unknown (gray); None: all unknown.
        classes: names by class number; the legend has those of up to 20 classes.
        title: of the figure.
        path: PNG to write, in an existing folder.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 6.0), layout="constrained")
    axes = figure.add_subplot()
    xy = points.cpu().numpy()
    y = np.full(len(xy), -1) if labels is None else labels
    unknown = y < 0
    axes.scatter(
        xy[unknown, 0], xy[unknown, 1], s=6, color="0.7", linewidths=0, label="unknown" if unknown.any() else None
    )
    if len(classes) <= 20:
        colors = colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for c, name in ((c, name) for c, name in enumerate(classes) if (y == c).any()):
            axes.scatter(xy[y == c, 0], xy[y == c, 1], s=6, color=colors(c), linewidths=0, label=str(name))
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class name may contain dollar signs
    else:
        axes.scatter(xy[~unknown, 0], xy[~unknown, 1], s=6, c=y[~unknown], cmap="hsv", linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    with replacing(Path(path)) as temporary:
        save_figure(figure, temporary, 120)


def _framed(image: NDArray[np.uint8], right: bool | None) -> NDArray[np.float64]:
    """Return an image (H, W, C) uint8 as (h, w, 3) in [0, 1], small ones enlarged, framed by whether it is right."""
    scale = -(-56 // len(image))
    pixels = np.repeat(np.repeat(image / 255.0, scale, axis=0), scale, axis=1)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    color = (1.0, 1.0, 1.0) if right is None else RIGHT if right else WRONG
    width = max(2, len(pixels) // 16)
    framed = np.ones((len(pixels) + 4 * width, pixels.shape[1] + 4 * width, 3))  # a white margin around the frame
    framed[width:-width, width:-width] = color
    framed[2 * width : -2 * width, 2 * width : -2 * width] = pixels
    return framed


def _mosaic(rows: Sequence[Sequence[NDArray[np.float64]]], title: str, path: str | Path) -> None:
    """Write tiles row by row, each pixel of a tile a pixel of the PNG."""
    from matplotlib.figure import Figure

    pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    dpi, head = 100, 40
    height, width = pixels.shape[:2]
    wide = max(width, 7 * len(title))  # room for the title
    figure: Any = Figure(figsize=(wide / dpi, (height + head) / dpi))
    axes = figure.add_axes((0, 0, width / wide, height / (height + head)))
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.text(0.01, 1 - head / 2 / (height + head), title, fontsize=9, va="center", parse_math=False)
    with replacing(Path(path)) as temporary:
        save_figure(figure, temporary, dpi)
