from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from semisup.errors import SemisupError
from semisup.evaluate import confusion_figure
from semisup.evaluate.figures import embedding_figure
from semisup.evaluate.plots import views_figure

pytestmark = pytest.mark.usefixtures("with_figures")


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("size", [2, 10, 100])
def test_a_png_comes_out(tmp_path, size):
    matrix = torch.eye(size, dtype=torch.long) * 90 + 1
    matrix[0] = 0  # a class without samples
    confusion_figure(matrix, [f"class {i}" for i in range(size)], tmp_path / "confusion.png")
    image = pixels(tmp_path / "confusion.png")
    assert 400 < image.shape[0] < 2500
    assert 400 < image.shape[1] < 2500


def test_rows_are_true_classes_from_the_top(tmp_path):
    names = ["a", "b", "c"]
    lower, upper = torch.zeros(3, 3, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    lower[2, 0], upper[0, 2] = 10, 10
    for name, matrix in (("lower", lower), ("upper", upper)):
        confusion_figure(matrix, names, tmp_path / name)
        image = pixels(tmp_path / name)
        # Dark blue as the one full cell is; the color bar's own dark end is right of the square.
        square = image[:, : int(image.shape[1] * 0.7)].astype(int)
        rows, columns = np.nonzero((square[..., 2] > 90) & (square[..., 0] < 30) & (square[..., 1] < 70))
        assert len(rows) > 1000
        below, left = rows.mean() > image.shape[0] / 2, columns.mean() < square.shape[1] / 2
        assert (below, left) == ((True, True) if name == "lower" else (False, False))


def test_dollar_signs_in_a_class_name_are_text(tmp_path):
    confusion_figure(torch.eye(2, dtype=torch.long), ["$x_$", "under_score $\\bad$"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_letters_that_no_font_has_are_no_warning(tmp_path, recwarn):
    names = ["\u6570\u5b57", "\u0623\u0631\u0642\u0627\u0645", "\U0001f408"]
    confusion_figure(torch.eye(3, dtype=torch.long), names, tmp_path / "x.png")
    embedding_figure(torch.rand(6, 2), np.arange(6) % 3, names, "", tmp_path / "y.png")
    views_figure([("image", np.zeros((3, 8, 8, 1)))], names, [(name, 1) for name in names], "", tmp_path / "z.png")
    assert not recwarn.list


def test_wrong_size_is_named(tmp_path):
    with pytest.raises(SemisupError, match=r"matrix must be \(3, 3\) for 3 classes, got shape \(2, 2\)"):
        confusion_figure(torch.eye(2), ["a", "b", "c"], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_importing_evaluate_loads_nothing_heavy_and_drawing_leaves_pyplot_alone(tmp_path):
    code = f"""
import sys, torch, semisup.evaluate
heavy = {{"matplotlib", "sklearn", "scipy"}} & set(sys.modules)
assert not heavy, heavy
semisup.evaluate.confusion_figure(torch.eye(2, dtype=torch.long), ["a", "b"], {str(tmp_path / "x.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
