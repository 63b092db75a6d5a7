"""Figures for a run's artifacts, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from semisup.errors import SemisupError

__all__ = ["confusion_figure"]

MAX_WRITTEN = 20  # classes up to which each cell carries its count
MAX_TICKS = 100  # class names on an axis; beyond, every second, third, ... one


def confusion_figure(matrix: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """Write a confusion matrix as a PNG: colour = fraction of the true class, numbers = counts (up to 20 classes).

    Args:
        matrix: (C, C) counts, row = true class, column = predicted class.
        classes: the C class names, in order.
        path: file to write, in an existing folder.

    Raises:
        SemisupError: ``matrix`` is not (C, C) for the C names in ``classes``.
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
                colour = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.savefig(path, format="png", dpi=120)
