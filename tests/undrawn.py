"""Figures that nobody looks at stay blank: making and drawing them is most of a run of a few steps."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from semisup.files import replacing


def savefig(figure: Any, path: str | Path, **options: Any) -> None:
    """In the place of `Figure.savefig`: a white PNG of 12 KB, which fills a disk as a figure does."""
    Image.new("RGB", (64, 64), "white").save(path, "PNG", compress_level=0)


def confusion_figure(matrix: Tensor, classes: Sequence[str], path: str | Path) -> None:
    """In the place of ours, which every stage makes: the same file in the same way, but blank."""
    with replacing(Path(path)) as temporary:
        savefig(None, temporary)


BLANK: dict[tuple[str, str], Callable[..., None]] = {
    ("matplotlib.figure:Figure", "savefig"): savefig,
    ("semisup.stages.evaluation", "confusion_figure"): confusion_figure,
    ("semisup.stages.encoder_figures", "confusion_figure"): confusion_figure,
}
"""Where a function that draws is -> what stands for it."""


def replace(functions: dict[tuple[str, str], Callable[..., None]]) -> dict[tuple[str, str], Callable[..., None]]:
    """Put these in their places, in this process; return what was there."""
    before = {}
    for (owner, name), function in functions.items():
        place = pkgutil.resolve_name(owner)
        before[owner, name] = getattr(place, name)
        setattr(place, name, function)
    return before
