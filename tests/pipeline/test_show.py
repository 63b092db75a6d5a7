"""The figure of what training sees: its cells are the views, its rows real images, its table the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semisup.augment import build_policy, to_float
from semisup.data import load_data
from semisup.engine import generator
from semisup.errors import SemisupError
from semisup.evaluate.plots import views_figure
from semisup.pipeline import show
from semisup.pipeline.plan import make_plan
from tests.pipeline.pipeline_small import small

pytestmark = pytest.mark.usefixtures("with_figures")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is handed to the figure, which is drawn all the same."""
    given: list[Any] = []

    def spy(*args: Any) -> None:
        given[:] = args
        views_figure(*args)

    monkeypatch.setattr(show, "views_figure", spy)
    return given


def test_every_stage_and_view_is_a_column(tmp_path: Path, drawn: list[Any]) -> None:
    show.show_data(small("data.labels=40"), tmp_path / "v.png")
    titles = [title for title, _ in drawn[0]]
    assert titles == [
        "original",
        "pretrain\nunlabeled\nfirst\nsimclr",
        "pretrain\nunlabeled\nsecond\nsimclr",
        "finetune\nlabeled\nweak\nweak",
        "student\nunlabeled\nweak\nweak",
    ]
    with Image.open(tmp_path / "v.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500


def test_rows_are_labeled_and_other_training_images(tmp_path: Path, drawn: list[Any]) -> None:
    recipe = small("data.labels=40")
    show.show_data(recipe, tmp_path / "v.png", images=12)
    columns, names, counts, title, _ = drawn
    data, budget = load_data(recipe.data), make_plan(recipe, trial=False).budget
    assert names[6:] == ["unlabeled"] * 6 and len(set(names[:6])) == 6, "as many classes as there are rows"
    originals = np.rint(columns[0][1] * 255).astype(np.uint8)
    rows = [int(np.flatnonzero((data.x_train == image).all((1, 2, 3)))[0]) for image in originals]
    assert [row in budget.index for row in rows] == [True] * 6 + [False] * 6
    assert [data.classes[data.y_train[row]] for row in rows[:6]] == names[:6]
    assert counts == [(str(k), 4) for k in range(10)]
    assert title == "small: 40 of 1,438 training images labeled, 4 per class"


def test_views_are_made_by_the_recipes_own_policies(tmp_path: Path, drawn: list[Any]) -> None:
    """Their options, and whether flips are allowed, too; nothing of labeled views next to images without a label."""
    augment = "stages.finetune.augment={weak: {policy: weak, shift: 0.5}}"
    recipe = small(augment, "seed=5")
    show.show_data(recipe, tmp_path / "v.png", stage="finetune")
    (_, originals), (title, views) = drawn[0]
    assert title == "finetune\nlabeled\nweak\nweak"
    images = to_float(torch.from_numpy(np.rint(originals * 255).astype(np.uint8)))
    policy = build_policy("weak", {"shift": 0.5}, flip=False)
    expected = policy(images, generator(5, "finetune", "labeled", "weak", 0)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(views[:4], expected[:4], atol=1e-6)
    assert np.isnan(views[4:]).all()


def test_with_all_labels_every_row_is_labeled(tmp_path: Path, drawn: list[Any]) -> None:
    show.show_data(small("data.labels=all"), tmp_path / "v.png", images=5)
    assert "unlabeled" not in drawn[1] and len(drawn[1]) == 5


def test_the_table_has_the_budget_of_every_class(tmp_path: Path) -> None:
    lines = show.show_data(small("data.labels=10%", "data.validation=0.5"), tmp_path / "v.png")
    plan = make_plan(small("data.labels=10%", "data.validation=0.5"), trial=False)
    assert lines[1].split() == ["class", "labels", "used", "validation", "labels", "there"]
    for k in range(10):
        name, used, held, _ = lines[2 + k].split()
        assert (name, int(used)) == (str(k), plan.budget.per_class[k])
        assert int(held) == np.count_nonzero(plan.data.y_train[plan.budget.validation] == k)
    assert lines[12].split() == ["all", str(len(plan.budget.index)), str(len(plan.budget.validation)), "1,438"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="--stage: no stage 'finetun' that trains; did you mean 'finetune'"):
        show.show_data(small(), tmp_path / "v.png", stage="finetun")
    with pytest.raises(SemisupError, match=r"--out .*: cannot be written"):
        show.show_data(small(), tmp_path / "none" / "v.png")


def test_cells_are_the_images_with_room_between(tmp_path: Path) -> None:
    """Read back from the picture: a red and a green cell of a color image, a white one where there is nothing."""
    red, green = np.zeros((2, 1, 100, 100, 3))
    red[..., 0], green[..., 1] = 1, 1
    columns = [("a", red), ("b", np.full_like(red, np.nan)), ("c", green)]
    views_figure(columns, ["$x$"], [("x", 1), ("y", 3)], "title", tmp_path / "v.png")
    pixels = np.asarray(Image.open(tmp_path / "v.png").convert("RGB")).astype(int)
    reds = np.argwhere((pixels == [255, 0, 0]).all(-1))
    greens = np.argwhere((pixels == [0, 255, 0]).all(-1))
    side = np.ptp(reds, axis=0)
    assert abs(side[0] - side[1]) <= 3 and side[0] > 60, "square"
    assert greens[:, 1].min() - reds[:, 1].max() > side[1], "the empty cell lies between"
    assert abs(greens[:, 0].min() - reds[:, 0].min()) <= 1, "in one row"


def test_views_that_are_chosen_later_are_said_to_be(tmp_path: Path) -> None:
    lines = show.show_data(small("stages.finetune.augment=auto"), tmp_path / "v.png")
    assert [line for line in lines if "auto" in line] == [
        "finetune: augment: auto chooses in training; drawn is what its method has without it"
    ]
