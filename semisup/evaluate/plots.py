"""Figures for a run's artifacts, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from semisup.errors import SemisupError
from semisup.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "reliability_figure", "save_figure", "views_figure"]

MAX_WRITTEN = 20  # classes up to which each cell carries its count
MAX_BARS = 60  # classes up to which each has a bar
MAX_TICKS = 100  # class names on an axis; beyond, every second, third, ... one
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")
"""Have the letters of names that matplotlib's own font has not, where one of them is installed."""


def save_figure(figure: Figure, path: Path | IO[bytes], dpi: int) -> None:
    """Write a figure as a PNG; letters that no font here has become boxes, which is no reason to warn at each."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    installed = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=dpi)


def confusion_figure(matrix: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Write a confusion matrix as a PNG: color = fraction of the true class, numbers = counts (up to 20 classes).

    Args:
        matrix: (C, C) counts, row = true class, column = predicted class.
        classes: the C class names, in order.
        path: file to write, in an existing folder.

    Raises:
        SemisupError: `matrix` is not (C, C) for the C names in `classes`, or the file cannot be written.
    """
    size = len(classes)
    if matrix.shape != (size, size):
        raise SemisupError(f"matrix must be ({size}, {size}) for {size} classes, got shape {tuple(matrix.shape)}")
    from matplotlib.figure import Figure

    counts = matrix.cpu().numpy()
    fractions = counts / counts.sum(axis=1, keepdims=True).clip(min=1)  # a class without samples is a row of 0
    side = min(max(0.55 * size, 4.0), 15.0)  # inches of the square itself
    figure = Figure(figsize=(side + 2.0, side + 1.5), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    ticks = range(0, size, -(-size // MAX_TICKS))
    names = [classes[i] for i in ticks]
    font = min(10.0, 0.7 * 72 * side / len(names))
    # parse_math=False: a class name may contain dollar signs.
    axes.set_xticks(ticks, labels=names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, labels=names, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if size <= MAX_WRITTEN:
        for row in range(size):
            for column in range(size):
                color = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)
    with replacing(Path(path)) as temporary:
        save_figure(figure, temporary, 120)


def reliability_figure(
    diagrams: Sequence[tuple[str, Sequence[Sequence[float]], float]], title: str, path: str | Path
) -> None:
    """Write reliability diagrams next to each other as a PNG: accuracy and share of the predictions by confidence.

    Args:
        diagrams: title, bins of `semisup.evaluate.metrics.reliability` and ECE of each.
        title: above them all.
        path: file to write, in an existing folder.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(diagrams), 3.9), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, (name, bins, ece) in zip(figure.subplots(1, len(diagrams), squeeze=False)[0], diagrams, strict=True):
        width, total = 1 / len(bins), sum(count for count, _, _ in bins)
        middles = [(i + 0.5) * width for i in range(len(bins))]
        axes.bar(middles, [hits for _, _, hits in bins], width, color="tab:blue", edgecolor="white", label="accuracy")
        shares = [count / total for count, _, _ in bins]
        axes.step([i * width for i in range(len(bins) + 1)], [*shares, shares[-1]], where="post", color="0.3")
        axes.plot([0, 1], [0, 1], color="tab:red", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy (bars), share (line)", aspect="equal")
        axes.set_title(f"{name}: ECE {100 * ece:.1f}%", fontsize=10)
    with replacing(Path(path)) as temporary:
        save_figure(figure, temporary, 110)


def views_figure(
    columns: Sequence[tuple[str, NDArray[np.float64]]],
    rows: Sequence[str],
    counts: Sequence[tuple[str, int]],
    title: str,
    path: str | Path,
) -> None:
    """Write a grid of images as a PNG, and next to it how many labels each class has (as bars, up to 60 classes).

    Args:
        columns: title and images (n, H, W, C) in [0, 1], C 1 or 3; an image of NaN is left empty.
        rows: the n rows' names.
        counts: class and number.
        title: above it all; the first column is named in full, too.
        path: file to write, in an existing folder.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    n, height, width = columns[0][1].shape[:3]
    zoom = max(1, round(80 / height))  # every pixel of a small image can be seen
    gap = max(2, height * zoom // 16)
    high, wide = height * zoom + gap, width * zoom + gap
    mosaic = np.ones((n * high - gap, len(columns) * wide - gap, 3))
    for j, (_, images) in enumerate(columns):
        for i, image in enumerate(np.nan_to_num(images, nan=1.0).clip(0, 1)):
            large = image.repeat(zoom, 0).repeat(zoom, 1)  # one channel becomes three
            mosaic[i * high : i * high + height * zoom, j * wide : j * wide + width * zoom] = large

    bars = len(counts) <= MAX_BARS
    grid = (mosaic.shape[1] / 100 + 1.2, max(mosaic.shape[0] / 100 + 1.3, 0.2 * len(counts) + 1.3 if bars else 0))
    figure = Figure(figsize=(grid[0] + (3.2 if bars else 0), grid[1]), dpi=100, layout="constrained")
    # parse_math=False: a class name may contain dollar signs.
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(1, 2 if bars else 1, squeeze=False, width_ratios=[grid[0], 3.2] if bars else None)[0]
    axes[0].imshow(mosaic, interpolation="nearest")
    middles = [j * wide + width * zoom / 2 for j in range(len(columns))]
    axes[0].set_xticks(middles, labels=[name for name, _ in columns], fontsize=8, parse_math=False)
    axes[0].set_yticks([i * high + height * zoom / 2 for i in range(n)], labels=rows, fontsize=8, parse_math=False)
    axes[0].tick_params(length=0, labeltop=True, labelbottom=False)
    axes[0].spines[:].set_visible(False)
    if bars:
        axes[1].barh(range(len(counts)), [number for _, number in counts], color="tab:blue")
        names = [f"{name}  {number:,}" for name, number in counts]
        axes[1].set_yticks(range(len(counts)), labels=names, fontsize=8, parse_math=False)
        axes[1].invert_yaxis()
        axes[1].set_title("labels of each class", fontsize=8)
        axes[1].tick_params(axis="x", labelsize=8)
        axes[1].spines[["top", "right"]].set_visible(False)
    save_figure(figure, Path(path), 100)
